"""What one rank exchanges in one step, by arithmetic: which groups, which collectives, how often, how many bytes.

Nothing is connected and nothing has memory, so that a layout of any size is counted on one machine. The figures are
exact; tests compare them with what ranks really exchange. They follow the layers' roles and the parts that the rank
holds of them, never the names of a family. One file says what one mode exchanges. Not counted: what happens beside
the steps (start, validation, checkpoints).
"""

from evocore.parallel.traffic.experts import Routed
from evocore.parallel.traffic.ledger import Exchange
from evocore.parallel.traffic.step import Mixture, Step, traffic

__all__ = ["Exchange", "Mixture", "Routed", "Step", "traffic"]
