"""Training in InternEvo's form of the command: ``python train.py --config FILE --launcher slurm|torch ...``.

The same as ``evocore train``, for launch scripts that name this file.
"""

import sys

from evocore.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
