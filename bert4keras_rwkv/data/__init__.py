"""Documents and the files they lie in, as ids, and as batches of them. Needs no Keras and no backend."""
