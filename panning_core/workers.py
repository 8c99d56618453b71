"""Work spread over processes or a cluster, in one name for scripts."""

from .experiments.workers import WorkerDied, spread

__all__ = ["WorkerDied", "spread"]
