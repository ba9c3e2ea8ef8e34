"""How fast a model runs on this machine, beside other programs and the machine's own limits. Loads no backend.

Each program is a process of its own: `ours`, `peer_rwkv`, `peer_llama_cpp` and `limits`, all by `serving`.
"""

from bert4keras_rwkv.evaluation.speed.measure import measure_speed
from bert4keras_rwkv.evaluation.speed.programs import PEERS
from bert4keras_rwkv.evaluation.speed.report import Report, Row
from bert4keras_rwkv.evaluation.speed.settings import Settings

__all__ = ["PEERS", "Report", "Row", "Settings", "measure_speed"]
