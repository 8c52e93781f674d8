//! Tar shards in, samples out: one after another, in the order of the shard.
