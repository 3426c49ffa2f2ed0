"""Every entry is BibTeX that can be cited."""

from __future__ import annotations

import re

import pytest

from synaptome.report.citations import BIBTEX


@pytest.mark.parametrize("key", BIBTEX)
def test_an_entry_has_its_key_and_what_bibtex_needs(key):
    entry = BIBTEX[key]
    assert re.match(rf"@[a-z]+{{{key},\n", entry)
    depths = [entry[:end].count("{") - entry[:end].count("}") for end in range(1, len(entry) + 1)]
    assert depths[-1] == 0
    assert entry.endswith("}")
    assert min(depths[entry.index("{") : -1]) >= 1
    names = re.findall(r"^  (\w+) += \{", entry, re.MULTILINE)
    assert len(names) == len(set(names))
    needed = {"title", "author"} | (set() if key == "synaptome" else {"year"})
    kind = entry[1 : entry.index("{")]
    needed |= {"article": {"journal"}, "inproceedings": {"booktitle"}, "techreport": {"institution"}}.get(kind, set())
    assert needed <= set(names)
    year = re.search(r"\d{4}$", key)
    assert year is None or f"= {{{year[0]}}}," in entry
