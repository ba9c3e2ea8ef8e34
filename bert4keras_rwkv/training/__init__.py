"""Training: data sets of documents, packed or padded into batches. Importing it loads no backend."""

from bert4keras_rwkv.training.batches import BucketedBatches, PackedBatches, SampledBatches
from bert4keras_rwkv.training.binidx import Binidx, write_binidx
from bert4keras_rwkv.training.documents import Document, Joined
from bert4keras_rwkv.training.encoding import encode_documents
from bert4keras_rwkv.training.pipeline import data_position, keras_dataset, recent_batches, record_dataset, tf_dataset
from bert4keras_rwkv.training.recipe import authors_optimizer, warm_up_cosine
from bert4keras_rwkv.training.records import RecordFile, read_records, write_records

__all__ = [
    "Binidx",
    "BucketedBatches",
    "Document",
    "Joined",
    "PackedBatches",
    "RecordFile",
    "SampledBatches",
    "authors_optimizer",
    "data_position",
    "encode_documents",
    "keras_dataset",
    "read_records",
    "recent_batches",
    "record_dataset",
    "tf_dataset",
    "warm_up_cosine",
    "write_binidx",
    "write_records",
]
