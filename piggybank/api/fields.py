"""The bounded field types that request structs share.

Every text has a length, every amount a range. What msgspec cannot say in a type is refused for all bodies at once in
`api/bodies.py`: NUL characters (PostgreSQL cannot store them) and a key that occurs twice in one object.
"""

from typing import Annotated

from msgspec import Meta

from piggybank import money

REFERENCE_MAX_CHARACTERS = 128
DESCRIPTION_MAX_CHARACTERS = 500
EXTERNAL_ID_MAX_CHARACTERS = 128
NAME_MAX_CHARACTERS = 200
SEARCH_MAX_CHARACTERS = 200
METADATA_MAX_PAIRS = 20
METADATA_KEY_MAX_CHARACTERS = 40
METADATA_VALUE_MAX_CHARACTERS = 500

Amount = Annotated[
    int,
    Meta(
        ge=1,
        le=money.MAX_AMOUNT,
        description="Whole minor units of the account's currency: 1250 is 12.50 in USD. Never a float, never a string.",
        examples=[1250],
    ),
]
CurrencyCode = Annotated[
    str,
    Meta(
        pattern="^[A-Z]{3}$",
        max_length=3,  # `$` would let a line feed follow
        description="ISO 4217 code; GET /v1/currencies lists those enabled here.",
        examples=["USD"],
    ),
]
Reference = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=REFERENCE_MAX_CHARACTERS,
        description="Your own name for this movement; history can be filtered by it.",
        examples=["invoice-2041"],
    ),
]
Description = Annotated[str, Meta(max_length=DESCRIPTION_MAX_CHARACTERS, description="For people.", examples=["Pocket money"])]
ExternalId = Annotated[
    str, Meta(min_length=1, max_length=EXTERNAL_ID_MAX_CHARACTERS, description="Your own id for this; unique.", examples=["customer-17"])
]
Name = Annotated[str, Meta(min_length=1, max_length=NAME_MAX_CHARACTERS, description="For people.", examples=["Holiday"])]
Metadata = Annotated[
    dict[
        Annotated[str, Meta(min_length=1, max_length=METADATA_KEY_MAX_CHARACTERS)],
        Annotated[str, Meta(max_length=METADATA_VALUE_MAX_CHARACTERS)],
    ],
    Meta(
        max_length=METADATA_MAX_PAIRS,
        description="Up to 20 strings of yours (key <= 40 characters, value <= 500), stored and given back as they are.",
        examples=[{"order": "2041"}],
    ),
]
