"""Uses of private parts of libraries that only serving may import. `sdpo_ray.upstream` has the record and the rest."""
