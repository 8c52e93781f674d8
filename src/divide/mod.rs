//! Embeddings in; centroids, each sample's cluster and its hardness out.
