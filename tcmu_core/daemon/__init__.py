"""tcmu-runner: the supervisor, the processes that it keeps running, and the zygote that forks them."""
