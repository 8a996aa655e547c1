"""Many processes and many machines: shards, codes gathered from them, and what a job costs on so many."""
