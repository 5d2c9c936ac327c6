"""The trainer's door to the data room: from the config to a loader and validation sets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from evocore.data.documents import Documents
from evocore.data.loader import TrainLoader
from evocore.data.packing import Packing
from evocore.data.padded_rows import PaddedRows
from evocore.data.random_documents import RandomDocuments
from evocore.data.sampler import RampUp, Sampler, SkipBatches
from evocore.data.stream_packing import DocumentPacking, WindowPacking
from evocore.data.tokenized import LengthFilter, TokenizedDocuments, require_bins
from evocore.data.valid import ValidSet
from evocore.seeds import derive_seed

if TYPE_CHECKING:
    from evocore.config import Config

__all__ = ["TrainLoader", "ValidSet", "build_train_loader", "build_valid_sets"]

_RANDOM_TRAIN, _RANDOM_VALID = 1 << 18, 64  # documents of random data


def build_train_loader(
    config: Config, *, data_rank: int, data_size: int, state: Mapping[str, int] | None = None
) -> TrainLoader:
    """The training data of one data rank, going on from ``state`` if there is one.

    ``data.num_worker`` step batches are prepared ahead by a thread; 0 prepares each when it is asked for.

    Raises:
        UserError: for folders, files, keys or a state that do not fit.
    """
    data = config.data
    documents: Documents
    if _is_random(config):
        documents = _random(config, _RANDOM_TRAIN, data.seed)
    else:
        root = Path(data.train_folder or "")
        documents = TokenizedDocuments(require_bins(root, "data.train_folder"), root, _length_filter(config))
    packing = _pack(config, documents, seed=data.seed, keep_tail=False)
    sampler = Sampler(
        num_packs=len(packing),
        fingerprint=packing.fingerprint(),
        micro_num=data.micro_num,
        data_rank=data_rank,
        data_size=data_size,
        seed=data.seed,
        ramp_up=RampUp.parse(data.rampup_batch_size, data.micro_num),
        skip=SkipBatches.parse(data.skip_batches),
    )
    if state is not None:
        sampler.load_state_dict(state)
    return TrainLoader(packing, sampler, prefetch=data.num_worker)


def build_valid_sets(
    config: Config, *, data_rank: int, data_size: int, max_packs: int | None = None
) -> dict[str, ValidSet]:
    """The validation sets by name, each for one pass over this rank's share.

    Every sub-folder of ``data.valid_folder`` with a ``.bin`` file is a set; files in the folder itself are the set
    "valid". Without a folder there is a set "random" if the training data is random, else none.

    Args:
        max_packs: look at no more packs of each set, over all ranks.

    Raises:
        UserError: if the folder is missing or empty, or a file in it is bad.
    """
    if config.data.valid_folder is None:
        if not _is_random(config):
            return {}
        sets: dict[str, Documents] = {"random": _random(config, _RANDOM_VALID, derive_seed(config.data.seed, 3))}
    else:
        root = Path(config.data.valid_folder)
        sets = {
            name: TokenizedDocuments(bins, root, _length_filter(config)) for name, bins in _valid_bins(root).items()
        }
    return {
        name: ValidSet(_pack(config, documents, seed=None, keep_tail=True), data_rank, data_size, max_packs)
        for name, documents in sets.items()
    }


def _valid_bins(root: Path) -> dict[str, list[Path]]:
    sets: dict[str, list[Path]] = {}
    for path in require_bins(root, "data.valid_folder"):
        folders = path.relative_to(root).parts[:-1]
        sets.setdefault(folders[0] if folders else "valid", []).append(path)
    return sets


def _is_random(config: Config) -> bool:
    return config.data.type == "random" or config.data.train_folder is None


def _random(config: Config, count: int, seed: int) -> RandomDocuments:
    data = config.data
    return RandomDocuments(count, data.seq_len, config.model.vocab_size, seed, data.fixed_random_dataset_seqlen)


def _length_filter(config: Config) -> LengthFilter:
    return LengthFilter(config.data.min_length, config.data.min_length_dict)


def _pack(config: Config, documents: Documents, *, seed: int | None, keep_tail: bool) -> Packing:
    data = config.data
    kind: type[Packing]
    if not data.use_packed_dataset:
        kind = PaddedRows
    else:
        kind = WindowPacking if data.pack_sample_into_one else DocumentPacking
    return kind(
        documents,
        seq_len=data.seq_len,
        micro_bsz=data.micro_bsz,
        seed=seed,
        keep_tail=keep_tail,
        vocab_size=config.model.vocab_size,
    )
