"""Where a task's rows are: a file, a folder that `datasets` knows, or a data set on the Hugging Face Hub. Always streamed:
what is read is what is kept, and reading stops at `rows`. A data set is data alone: no code of it is ever run."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from rlhf_bench.core.errors import BadInput
from rlhf_bench.core.settings import Section
from rlhf_bench.core.unusable import Unusable
from rlhf_bench.tasks.loading.rows import (
    READERS,
    FileRow,
    LeaveOut,
    Reader,
    read_csv,
    read_json,
    read_rows,
    refuse,
)

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


class Place(Section):
    """Where rows are. A text alone is `source`: `pairs: ./pairs.jsonl` is `pairs: {source: ./pairs.jsonl}`."""

    source: str = Field(
        min_length=1,
        description="A .jsonl, .json, .csv, .tsv or .parquet file; a folder, from save_to_disk or as it lies on the Hub; or a Hugging Face id.",
    )
    config: str | None = Field(None, description="Which configuration of a data set, where it has several.")
    split: str = Field("train", description="Which split of a data set.")
    revision: str | None = Field(
        None, description="Branch, tag or commit of a Hugging Face id; null takes its main one."
    )
    rows: int | None = Field(None, ge=1, description="Read the first so many rows and no more; null reads all.")


def _place(value: object) -> object:
    if isinstance(value, str | Path):
        return {"source": str(value)}
    if isinstance(value, Place | Mapping):
        return value
    raise ValueError("give a path, a Hugging Face id, or a mapping with source, config, split, revision, rows")


PlaceSetting = Annotated[Place, BeforeValidator(_place, json_schema_input_type=str | Place)]


def is_hub_id(source: str) -> bool:
    """Whether this can only be a data set on the Hub: OWNER/NAME, no file's name, and nothing of that name here."""
    return _HUB_ID.fullmatch(source) is not None and not source.endswith(tuple(READERS)) and not Path(source).exists()


def rows_at(place: Place, key: str, leave_out: LeaveOut = refuse) -> Iterator[FileRow]:
    """The rows, one after another; `key` is the recipe's key that names the place. BadInput where it cannot be read. A row
    that cannot be read goes to `leave_out`."""
    path = Path(place.source)
    if is_hub_id(place.source) or (path.suffix not in READERS and path.is_dir()):
        rows = _of_dataset(place, key, leave_out)
    else:
        rows = read_rows(path, key, leave_out)
    yield from islice(rows, place.rows)


def _of_dataset(place: Place, key: str, leave_out: LeaveOut) -> Iterator[FileRow]:
    number, left_out = 0, False

    def counted(fault: Unusable) -> None:
        nonlocal left_out
        left_out = True
        leave_out(fault)

    with _refused(place, key):
        for number, row in enumerate(_open(place, counted), start=1):
            yield replace(row, number=number)
    if not number and not left_out:
        raise BadInput(f"{key}: {place.source}[{place.split}] has no rows; give a split that has some")


def _open(place: Place, leave_out: LeaveOut) -> Iterable[FileRow]:
    import datasets  # takes a second, and most runs have no data set
    from datasets.packaged_modules.csv.csv import Csv
    from datasets.packaged_modules.json.json import Json

    folder = Path(place.source)
    if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():  # from save_to_disk
        found = datasets.load_from_disk(place.source)
        if isinstance(found, datasets.DatasetDict):
            if place.split not in found:
                raise ValueError(f"no split {place.split}; it has {', '.join(found)}")
            found = found[place.split]
        return _numbered(place, found)
    builder = datasets.load_dataset_builder(place.source, place.config, revision=place.revision)
    if not isinstance(builder, Csv | Json):
        return _numbered(place, builder.as_streaming_dataset(split=place.split))
    if place.split not in builder.config.data_files:
        raise ValueError(f"no split {place.split}; it has {', '.join(map(str, builder.config.data_files))}")
    files = builder.config.data_files[place.split]
    return _of_text_files(files, _readers(builder.config), leave_out)


def _numbered(place: Place, rows: Iterable[Mapping[str, Any]]) -> Iterator[FileRow]:
    for number, values in enumerate(rows, start=1):
        yield FileRow(f"{place.source}[{place.split}]:{number}", number, values)


def _readers(config: Any) -> Mapping[str, Reader]:
    """How the text files of a data set are read: as they are by name, with what its card says of separator and field."""
    known = {"name", "data_files", "data_dir", "description", "version", "sep", "delimiter", "field", "features"}
    plain = vars(type(config)(name=config.name))
    if other := sorted(key for key, value in vars(config).items() if key not in known and value != plain.get(key)):
        raise ValueError(f"its card sets {other[0]}, which is not read; give its files by name")
    if hasattr(config, "sep"):
        separated: Reader = partial(read_csv, separator=config.sep)
        return {".csv": separated, ".tsv": separated}
    return READERS if config.field is None else {".json": partial(read_json, field=config.field)}


def _of_text_files(files: Iterable[str], readers: Mapping[str, Reader], leave_out: LeaveOut) -> Iterator[FileRow]:
    """The rows of CSV and JSON files. Not by `datasets`, which takes texts for numbers and dates: 003 for 3."""
    import fsspec

    for name in files:
        suffix = Path(name.removesuffix(".gz")).suffix
        if suffix not in readers:
            raise ValueError(f"{name} is no {' or '.join(readers)} file; convert it")
        with fsspec.open(name, "rb", compression="infer") as file:
            yield from readers[suffix](name, file, leave_out)


@contextmanager
def _refused(place: Place, key: str) -> Iterator[None]:
    """Whatever `datasets` says of a user's data set becomes one line; its own warnings on the way there are kept back."""
    import datasets  # noqa: F401 - sets the levels of these as it is imported

    loggers = [logging.getLogger(name) for name in ("huggingface_hub", "datasets", "fsspec")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    except BadInput:
        raise
    except Exception as error:  # its readers raise what they please
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        remedy = (
            "correct source, config or split"
            if Path(place.source).is_dir()
            else (
                "correct the id, config or split; without a way to the Hub, download the data set and give its folder"
            )
        )
        raise BadInput(f"{key}: {place.source} cannot be read as a data set ({said}); {remedy}") from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
