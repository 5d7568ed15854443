"""What a simulator is told when it starts."""

from pathlib import Path

from msgspec import Struct

TIME_SCALE_MAX = 1_000_000.0


class Config(Struct, frozen=True, kw_only=True):
    """`url` is where programs reach it, `page_url` where people do (empty: the same); every wait is divided by `time_scale`."""

    folder: Path
    url: str
    page_url: str = ""
    key: str
    brand_id: str
    eft_client_id: str
    eft_client_secret: str
    faults: str = ""
    time_scale: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.time_scale <= TIME_SCALE_MAX:
            raise ValueError(f"time_scale must be above 0 and at most {TIME_SCALE_MAX:.0f}, not {self.time_scale}")
        if not self.url.startswith(("http://", "https://")) or self.url.endswith("/"):
            raise ValueError(f"url must be http(s)://.. without a slash at its end, not {self.url!r}")
        for name in ("key", "brand_id", "eft_client_id", "eft_client_secret"):
            if not getattr(self, name):
                raise ValueError(f"{name} must not be empty")
