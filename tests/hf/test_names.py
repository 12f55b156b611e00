"""The public names of `pagoda.hf`: listed here, so that none comes or goes unnoticed."""

import pagoda.hf


def test_the_public_names_are_these() -> None:
    assert sorted(pagoda.hf.__all__) == ["PagedCache", "PagedCacheStats"]
    assert all(getattr(pagoda.hf, name).__doc__ for name in pagoda.hf.__all__)
