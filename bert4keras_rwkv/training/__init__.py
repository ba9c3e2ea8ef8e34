"""Training: data sets for `fit`, the authors' recipe, tuning, distilling. Importing it loads no backend.

The documents, batches and files of `data` that one trains on are here by name too.
"""

from bert4keras_rwkv.public_names import public_names

__getattr__, __dir__, __all__ = public_names(
    __name__,
    {
        "Binidx": "..data.binidx",
        "BucketedBatches": "..data.batches",
        "Document": "..data.documents",
        "Joined": "..data.documents",
        "PackedBatches": "..data.batches",
        "RecordFile": "..data.records",
        "SampledBatches": "..data.batches",
        "authors_optimizer": ".recipe",
        "data_position": ".datasets",
        "encode_documents": "..data.encoding",
        "keras_dataset": ".datasets",
        "read_records": "..data.records",
        "recent_batches": ".datasets",
        "record_dataset": ".tf_data",
        "tf_dataset": ".tf_data",
        "warm_up_cosine": ".recipe",
        "write_binidx": "..data.binidx",
        "write_records": "..data.records",
    },
)
