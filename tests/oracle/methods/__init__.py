"""Every formula of METHODS.md in f64 and in its dense form: slow, readable, and written without a look at the Rust.

In the order in which a sample meets them:

    noise        keyed hashes and Gumbel noise                         METHODS §3
    losses       logits, pair losses and scores of both objectives     §1, §2
    counts       kept counts, super-batches, chunks, quotas, cost      §3, §5
    draws        joint and independent draws, Plackett–Luce            §3, §4
    independent  ActiveCLIP, contrastive and ClassAct scores           §4
    clusters     spherical k-means, balanced sampling                  §5, §6
    hardness     hardness of negatives                                 §5
    field        filters and baselines of the field                    §6
    calibrate    logit scale and bias by the sigmoid loss              §1
    agreement    effective numbers, rank agreement, overlap, AUC       §3, §4, §7

Embeddings are [n, d], rows of unit length; in a matrix row = image, column = caption. `check.py` holds the cases that
were worked out by hand and the identities; `python3 tests/oracle/check.py` runs them.
"""
