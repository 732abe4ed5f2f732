"""tcmu-runner's processes: the supervisor, the zygote that forks workers, and the worker behind each device."""
