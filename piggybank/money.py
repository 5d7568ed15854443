"""Money is whole minor units of an ISO 4217 currency; no float anywhere."""

MAX_AMOUNT = 10**12  # minor units, one movement
MAX_BALANCE = 2**53 - 1  # minor units; safe in every JSON client

_MINOR_UNIT_0 = "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF"
_MINOR_UNIT_3 = "BHD IQD JOD KWD LYD OMR TND"
_MINOR_UNIT_2 = (
    "AED AFN ALL AMD ANG AOA ARS AUD AWG AZN BAM BBD BDT BGN BMD BND BOB BRL BSD BTN BWP BYN BZD CAD CDF CHF CNY COP CRC CUP CVE CZK "
    "DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GTQ GYD HKD HNL HTG HUF IDR ILS INR IRR JMD KES KGS KHR KPW KYD KZT LAK "
    "LBP LKR LRD LSL MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MYR MZN NAD NGN NIO NOK NPR NZD PAB PEN PGK PHP PKR PLN QAR RON "
    "RSD RUB SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TOP TRY TTD TWD TZS UAH USD UYU UZS VED VES WST "
    "XCD YER ZAR ZMW ZWG"
)

MINOR_UNITS: dict[str, int] = {
    code: digits for digits, codes in ((0, _MINOR_UNIT_0), (2, _MINOR_UNIT_2), (3, _MINOR_UNIT_3)) for code in codes.split()
}
ENABLED_AT_FIRST = ("EUR", "GBP", "USD", "ZAR")


def shown(amount: int, currency: str) -> str:
    """`1234`, `USD` -> `12.34 USD`: for people, never for arithmetic."""
    digits = MINOR_UNITS[currency]
    if not digits:
        return f"{amount} {currency}"
    whole, part = divmod(abs(amount), 10**digits)
    return f"{'-' if amount < 0 else ''}{whole}.{part:0{digits}d} {currency}"
