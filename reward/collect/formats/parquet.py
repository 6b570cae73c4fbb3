"""Canonical rows as Parquet. `meta` is JSON in the column meta_json, since the columns of Parquet have fixed types."""

import json
from collections.abc import Iterable
from itertools import islice
from typing import BinaryIO

ROWS_PER_GROUP = 1000


def write_parquet(rows: Iterable[dict], stream: BinaryIO) -> int:
    import pyarrow
    import pyarrow.parquet

    schema = _schema(pyarrow)
    count = 0
    with pyarrow.parquet.ParquetWriter(stream, schema) as writer:
        rows = iter(rows)
        while group := list(islice(rows, ROWS_PER_GROUP)):
            writer.write_table(pyarrow.Table.from_pylist([_flat(row) for row in group], schema))
            count += len(group)
    return count


def _schema(pyarrow):
    text = pyarrow.string()
    columns = {
        "prompt": pyarrow.list_(pyarrow.struct({"role": text, "content": text}.items())),
        "responses": pyarrow.list_(text),
        "ranks": pyarrow.list_(pyarrow.int64()),
        **dict.fromkeys(("annotator", "prompt_id", "group"), text),
        **dict.fromkeys(("weight", "margin"), pyarrow.float64()),
        "meta_json": text,
    }
    return pyarrow.schema(columns.items())


def _flat(row):
    row = {**row, "meta_json": json.dumps(row["meta"], ensure_ascii=False) if "meta" in row else None}
    return {**row, "group": None if row.get("group") is None else str(row["group"])}
