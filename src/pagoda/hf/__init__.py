"""Pages under plain Hugging Face code: a `PagedCache` is the `past_key_values` of `model.generate(...)`."""

from pagoda.hf.cache import PagedCache as PagedCache
from pagoda.hf.stats import PagedCacheStats as PagedCacheStats

__all__ = ["PagedCache", "PagedCacheStats"]
