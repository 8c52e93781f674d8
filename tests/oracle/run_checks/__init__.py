"""The checks of `run_folder.py`, in the order in which a sample meets what they check.

    report       one line a check
    models       embeddings or classifier logits → losses and scores, by the method of the final draw
    stored       plan, markers, tables
    embedded     samples/ and embeddings/
    divided      the divide stage as committed; clustered: its checks
    replay       a draw replayed chunk by chunk; selected: the checks of select/
    curated      the product
"""
