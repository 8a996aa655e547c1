"""Many processes and many machines: shards, Ray, codes gathered from them, and what a job costs on so many."""
