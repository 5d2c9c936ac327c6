"""The block ``data``: where tokens come from and how they become batches."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from evocore.config.schema_base import Block, Count, NonNegative, Strings, Text


class RawText(Block):
    """Plain text that is tokenised into train_folder and valid_folder at the start, if those do not exist yet."""

    sources: Strings
    """Files and folders with text."""
    suffixes: Strings = [".py"]
    """Endings of the files that are read in a folder."""
    exclude: Strings = []
    """Names of folders that are left out."""
    vocab_size: Count = 1024
    """Size of the vocabulary that is learnt if data.tokenizer_path does not exist."""
    valid_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """Share of the documents that goes to valid_folder."""
    num_workers: Count | None = None
    """Processes that tokenise; None takes one per core."""
    max_bytes: Count | None = None
    """Stop reading after this much text; None reads everything."""


class Data(Block):
    """Training and validation data."""

    type: Literal["tokenized", "random", "streaming", "megatron", "mocked"] = "tokenized"
    """Kind of the data set; tokenized without a train_folder becomes random."""
    seq_len: Count
    """Tokens of one sample."""
    micro_bsz: Count
    """Samples packed into one micro-batch."""
    micro_num: Count = 1
    """Micro-batches per step and data-parallel rank."""
    packed_length: Count
    """Tokens of one micro-batch; derived: seq_len * micro_bsz."""
    gradient_accumulation: Count
    """Micro-batches accumulated before a step; derived: micro_num."""
    batch_size: Count
    """Packs that a data-parallel rank takes per step; derived: micro_num."""
    total_steps: Count
    """Steps of the run."""
    valid_every: NonNegative = 0
    """Steps between validations; 0 is never."""
    valid_max_packs: Count | None = None
    """At most so many packs of each validation set, over all ranks; None takes all."""
    valid_micro_num: Count
    """Micro-batches of one validation batch; derived: micro_num."""
    pack_sample_into_one: bool = False
    """True attends across documents inside a sample; False keeps documents apart."""
    use_packed_dataset: bool = True
    """Pack documents; False pads each to seq_len."""
    skip_batches: Text = ""
    """Batches to leave out, e.g. "2-14,20" (inclusive)."""
    rampup_batch_size: Text = ""
    """Batch-size ramp "start increment every_n_batches", in packs."""
    min_length: NonNegative = 0
    """Documents with fewer tokens are dropped."""
    min_length_dict: dict[str, NonNegative] = {}
    """min_length per kind of document."""
    train_folder: str | None = None
    """Folder with tokenised training data; None trains on random tokens."""
    valid_folder: str | None = None
    """A sub-folder of tokenised data per validation set; None: none, or random tokens as well."""
    tokenizer_path: str | None = None
    """Tokenizer of the text."""
    raw: RawText | None = None
    """Plain text to tokenise at the start."""
    seed: int = 1024
    """Seed of the order of documents."""
    num_worker: NonNegative = 4
    """Batches of steps that a background thread prepares ahead; 0 prepares each when it is asked for."""
    fixed_random_dataset_seqlen: bool = True
    """Random samples all have seq_len tokens."""
    empty_cache_and_diag_interval: Count = 50
    """Steps between releases of cached memory and slow-rank diagnosis."""
    diag_outlier_ratio: float = 1.1
    """A rank this much slower than the mean is reported; at least 1."""
    use_shm: bool = False
    """Share the index of the data between processes through shared memory."""
    shm_path: str = "/dev/shm/metacache"
    """Folder of the shared index."""
    bucket_size: NonNegative = 0
    """Samples sorted by length at a time; 0 does not sort."""
    content_name: str = "text"
    """Column with the text of a streaming data set."""
    subset_name: str | None = None
    """Subset of a streaming data set."""
    is_multimodal: bool = False
    """Samples carry images."""
    image_folder: str | None = None
    """Folder of the images."""
    image_size: Count | None = None
    """Side of an image in pixels."""
    patch_size: Count | None = None
    """Side of an image patch in pixels."""
    vocab_file: str | None = None
    """Vocabulary of a megatron data set."""
