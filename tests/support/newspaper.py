"""Write sentences as in newspapers: control captions that are nothing like captions of pictures."""

from __future__ import annotations

import random

_WORDS = {
    "place": """Lisbon Oslo Nairobi Quito Hanoi Tbilisi Dublin Manila Lagos Riga Seoul Lima Cairo Vienna Dakar Ottawa
        Jakarta Athens Bogota Sofia Amman Prague Havana Accra Zagreb Minsk Tunis Baku Kigali Tallinn Osaka Leipzig""",
    "who": """ministers regulators unions prosecutors economists farmers teachers nurses commuters investors voters
        lawmakers judges scientists airlines retailers fishermen landlords tenants councillors referees curators brewers
        shareholders pensioners dockers archivists surgeons midwives geologists""",
    "does": "reject approve delay criticise defend postpone investigate suspend welcome overturn scrutinise",
    "what": """budget merger pipeline tariff subsidy strike verdict referendum curfew loan treaty dividend audit inquest
        quarry tramway stadium reservoir pension vaccine levy quota embargo lawsuit charter refinery""",
    "how": "sharply quietly again unanimously",
}


def newspaper(count: int, seed: int = 0) -> list[str]:
    """Return distinct sentences."""
    rng = random.Random(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        pick = {kind: rng.choice(words.split()) for kind, words in _WORDS.items()}
        start = f"{pick['who'].capitalize()} in {pick['place']} {pick['how']} {pick['does']}"
        found[f"{start} the {pick['what']} despite months of talks, officials said on Tuesday."] = None
    return list(found)
