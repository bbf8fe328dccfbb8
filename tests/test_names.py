"""Names of real things as text for language models."""

from itertools import islice

import pytest

from mpm_lite import UserError
from mpm_lite.data import load_captions, names


def test_every_emoji_is_named_in_fourteen_languages():
    things = names.read_names(("emoji",))
    assert len(things) == sum(len(load_captions("emoji", split)) for split in ("train", "val", "test"))
    assert all(set(thing.names) == set(names.LANGUAGES) for thing in things) and len(names.LANGUAGES) == 14
    assert {thing.split for thing in things} == {"train", "val", "test"}


def test_the_share_of_translations_is_a_dial_and_every_document_names_one_thing():
    by_id = {tuple(sorted(thing.names.items())): thing for thing in names.read_names(("emoji",))}
    for share in (0.0, 0.3, 1.0):
        many = list(islice(names.write_documents(share, 1, ("emoji",)), 800))
        pairs = [d for d in many if d.languages[0] != d.languages[1]]
        assert abs(len(pairs) / 800 - share) < 0.06 and all("en" in d.languages for d in pairs)
        assert len({d.languages[1] for d in many}) == 14
    said = {(code, name): names_ for names_ in by_id for code, name in names_}
    for d in many[:200]:
        assert d.segments[1] == names.ask_name(d.languages[1]) and d.text.count("\n") == 2
        assert (d.languages[0], d.segments[0]) in said and (d.languages[1], d.segments[2]) in said
    assert list(islice(names.write_documents(0.3, 1, ("emoji",)), 50)) == list(
        islice(names.write_documents(0.3, 1, ("emoji",)), 50)
    )


def test_mistakes_are_said():
    with pytest.raises(UserError, match="Unknown language of names 'sw'"):
        names.ask_name("sw")
    with pytest.raises(UserError, match="between 0 and 1"):
        next(names.write_documents(1.5, sets=("emoji",)))
