"""Numbers that belong to somebody: payment cards, bank accounts, telephones, national numbers of persons.

Each needs more than its digits: a checksum, an issuer, a numbering plan, or a cue word close by. A national number of
bare digits passes its checksum by chance in up to a tenth of all cases, so it counts only near its cue (`BSN`, `NHS`)
or in punctuation of its own (`1112.22.333`). Checksums and plans are those of python-stdnum and phonenumbers.
"""

import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import phonenumbers
from phonenumbers import Leniency, PhoneNumberFormat, PhoneNumberMatcher
from stdnum import iban, luhn

from tunesmith.text import END, START, Hit

END_OF_NUMBER = r"(?![0-9A-Za-z_]|[-./][0-9])"

# What a number is of that looks like a telephone's and is none.
NUMBER_OF = re.compile(
    r"(?i)(?<![a-z])(?:order|invoice|inv|ref|reference|part|article|item|sku|serial|ticket|case|account|acct|batch|lot|"
    r"model|isbn|issn|ean|gtin|imei|doi|zip|tracking|permit|licen[cs]e|policy|po|rma|version|job|build|issue|bestell\w*|"
    r"rechnung\w*|kunden\w*|artikel\w*|auftrag\w*|vorgang\w*|aktenzeichen|az|docket|ndc|commande|facture|pedido)"
    r"(?:[\W_]{0,3}(?:id|no|nr|number|key))?[\W_]{1,5}$"
)

NOT_DIGITS = bytes(byte for byte in range(256) if byte not in b"0123456789")


def digits(text: str) -> int:
    """How many ASCII digits a text holds: most texts hold too few for most rules, and this takes half a microsecond."""
    return len(text.encode("utf-8", "replace").translate(None, NOT_DIGITS))


def bare(written: str) -> str:
    """Letters and digits only, in capitals: what all written forms of a number share."""
    return re.sub(r"[^0-9A-Za-z]", "", written).upper()


# ---------------------------------------------------------------------- money

CARD = re.compile(
    rf"{START}(?<![0-9][-./])(?<![0-9]{{4}}[ \xa0])"
    r"(?:[0-9]{13,19}|[0-9]{4}([ \xa0-])[0-9]{4}\1[0-9]{4}\1[0-9]{4}(?P<tail>\1[0-9]{3})?|"
    r"[0-9]{4}([ \xa0-])[0-9]{6}\3[0-9]{4,5})"
    rf"{END_OF_NUMBER}(?![ \xa0][0-9]{{4}}{END})"
)
ISSUERS = (
    ("Visa", r"4", (13, 16, 19)),
    ("Mastercard", r"5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720", (16,)),
    ("American Express", r"3[47]", (15,)),
    ("Diners Club", r"30[0-5]|36|3[89]", (14, 16)),
    ("Discover", r"6011|64[4-9]|65", (16, 19)),
    ("JCB", r"35(?:2[89]|[3-8])", (16, 17, 18, 19)),
    ("UnionPay", r"62", (16, 17, 18, 19)),
    ("Mir", r"220[0-4]", (16,)),
    ("RuPay", r"60|81|82|508", (16,)),
    ("Maestro", r"50[123]8|5893|6304|67(?:59|6[123])", (13, 14, 15, 16, 17, 18, 19)),
)
CARD_CUE = re.compile(
    r"(?i)card|karte|carte|tarjeta|visa|maestro|diners|unionpay|\bpan\b|\bpa(?:y|id)\b|charge|valid|cvc|cvv"
)


def cards(text: str) -> Iterator[Hit]:
    """Luhn, issuer and length. A bare run after a word such as `order`, or not 15 or 16 long, wants a cue."""
    if digits(text) < 13:
        return
    for match in CARD.finditer(text):
        start = match.start()
        # The last three of nineteen digits may be the card's security code.
        for written in dict.fromkeys((match[0], match[0].removesuffix(match["tail"] or ""))):
            number = bare(written)
            issuer = next((n for n, first, sizes in ISSUERS if len(number) in sizes and re.match(first, number)), None)
            if not issuer or not luhn.is_valid(number):
                continue
            usual = len(number) in (15, 16) and not NUMBER_OF.search(text[max(0, start - 30) : start])
            if usual or written != number or CARD_CUE.search(text, max(0, start - 60), match.end() + 30):
                yield start, start + len(written), issuer, number
                break


IBAN = re.compile(rf"(?:{START}|(?<=IBAN))[A-Za-z]{{2}}[0-9]{{2}}(?:[ \xa0-]?[0-9A-Za-z]){{11,30}}")


def ibans(text: str) -> Iterator[Hit]:
    """Account numbers of the form that their country has, by their two check digits; spaced or not."""
    if digits(text) < 8:
        return
    for match in IBAN.finditer(text):
        # The match may run into the words that follow; its longest part that is an account's number is one.
        for end in range(match.end(), match.start() + 14, -1):
            if not re.match(END, text[end : end + 1]) or not text[end - 1].isalnum():
                continue
            if iban.is_valid(bare(text[match.start() : end]), check_country=False):
                yield match.start(), end, "IBAN", bare(text[match.start() : end])
                break


# ---------------------------------------------------------------------- telephones

# Whose national forms are known; numbers with a + are known of every country.
REGIONS = ("US", "GB", "DE", "FR", "IT", "ES", "NL")

PHONE = re.compile(
    rf"{START}(?:(?=\+)|(?<![$€£#.,/-])(?<![0-9]:))[+(]{{0,2}}[0-9](?:[ \xa0().\-/]{{0,3}}[0-9]){{6,17}}{END_OF_NUMBER}"
)
PHONE_CUE_AFTER = re.compile(r"(?i) ?\((?:mobil|cell|fax|office|home|work|privat)")
# Columns of numbers.
AMONG = re.compile(r"[0-9]{3}[ \xa0]$")
# Dates, fractions, hours and pages, and the ZIP+4 of America.
NO_PHONE = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}\b|[0-9]{1,2}[./-][0-9]{1,2}[./-][0-9]{4}\b|[0-9]+\.[0-9]+$"
    r"|[0-9]{4} ?- ?[0-9]{4}$|[0-9]{5}-[0-9]{4}$"
)
# How a number looks that needs no cue: a trunk 0 and a separator, or the American 3-3-4.
NATIONAL = re.compile(
    r"\(?0(?:0 ?[1-9]|[1-9])[0-9]*\)?[ \xa0./-]"
    r"|(?:1[ .-])?(?:\([2-9][0-9]{2}\) ?|[2-9][0-9]{2}([ .-])(?=[0-9]{3}\1))[0-9]{3}[ .-][0-9]{4}$"
)
PHONE_CUE = re.compile(
    r"(?i)(?:phone|mobil|telefo|t[ée]l[ée]ph|rufen|whatsapp|(?<![a-z])(?:handy|cellul|m[óo]vil|anruf|rufnum|hotline|"
    r"fax|(?:t[ée]l|cell|call(?!\()|dial|ring|sms|ph|portable|reach (?:me|us|him|her|them))(?![a-z])))[^0-9\n]{0,24}$"
    r"|(?<![A-Za-z])[TMPF][.:] ?$"
)


def phones(text: str) -> Iterator[Hit]:
    """Numbers that some country's plan knows.

    With a + they need nothing else. In national form they need a cue (`Tel.`, `call`), or the grouping that is usual in
    one of `REGIONS` and no word before them that names another thing (`Order`, `ISBN`).
    """
    if digits(text) < 7:
        return
    for match in PHONE.finditer(text):
        start, written = match.start(), match[0]
        before = text[max(0, start - 50) : start]
        if written.count("(") > written.count(")"):
            start, written = start + 1, written[1:]
        cued = PHONE_CUE.search(before) or PHONE_CUE_AFTER.match(text, match.end())
        regions: list[str | None] = [*REGIONS]
        leniency = Leniency.VALID
        if "+" in written:
            regions = [None]
        elif not cued:
            leniency = Leniency.STRICT_GROUPING
            if (
                not NATIONAL.match(written)
                or any(p.search(before) for p in (NUMBER_OF, AMONG))
                or NO_PHONE.match(written)
            ):
                continue
        for region in regions:
            # The matcher is slow; on a dozen characters it takes as long as the rest of a text does.
            numbers = list(PhoneNumberMatcher(written, region, leniency=leniency))
            if leniency == Leniency.STRICT_GROUPING:
                numbers = [number for number in numbers if number.start == 0]
            for number in numbers:
                value = phonenumbers.format_number(number.number, PhoneNumberFormat.E164)
                yield start + number.start, start + number.end, "telephone number", value
            if numbers:
                break


# ---------------------------------------------------------------------- national numbers of persons


@dataclass(frozen=True)
class Identity:
    """A national number: its name, python-stdnum's module, cue words, and the forms that want a cue or stand alone.

    In a form `9` is a digit, `A` a capital letter and `X` either; a bar stands between two forms.
    """

    kind: str
    module: str
    cue: str = "(?!)"
    cued: str = "!"
    alone: str = "!"

    def passes(self, number: str) -> bool:
        """Whether the number has a right checksum, as written or bare."""
        try:
            return bool(self.module_of_stdnum.is_valid(number) or self.module_of_stdnum.is_valid(bare(number)))
        except (LookupError, ValueError):
            # Not only for what is no number: its table of Chinese places has provinces without counties.
            return False

    @cached_property
    def module_of_stdnum(self) -> Any:
        """Imported when first needed: there are forty."""
        return importlib.import_module(f"stdnum.{self.module}")

    @cached_property
    def patterns(self) -> tuple[re.Pattern[str], re.Pattern[str], re.Pattern[str]]:
        """Of the forms that stand alone, of those that want a cue, and of the cue."""
        cue = re.compile(rf"(?<![^\W\d_])(?i:{self.cue})(?![a-zà-ÿ])")
        return form_pattern(self.alone), form_pattern(self.cued), cue


def form_pattern(forms: str) -> re.Pattern[str]:
    """What matches the forms of an identity."""
    kinds = {"9": "[0-9]", "A": "[A-Z]", "X": "[0-9A-Z]", "|": "|"}
    return re.compile(f"(?:{''.join(kinds.get(c) or re.escape(c) for c in forms)}){END_OF_NUMBER}")


BARE_9, BARE_10, BARE_11, BARE_12, BARE_13 = ("9" * length for length in range(9, 14))
GROUPS_9 = f"999 999 999|{BARE_9}"

# A form stands alone if its punctuation is its own, or if fewer than one in a thousand other numbers would pass.
IDENTITIES = (
    Identity("Argentine CUIL", "ar.cuit", r"cui[lt]", BARE_11, "99-99999999-9"),
    Identity("Australian TFN", "au.tfn", r"tfn|tax file", GROUPS_9),
    Identity("Austrian insurance number", "at.vnr", r"sozialversicherung\w*|svnr|sv-nr", f"9999 999999|{BARE_10}"),
    Identity("Belgian NN", "be.nn", r"rijksregister\w*|registre national|niss|insz", BARE_11, "99.99.99-999.99"),
    Identity("Brazilian CPF", "br.cpf", r"cpf", BARE_11, "999.999.999-99"),
    Identity("Bulgarian EGN", "bg.egn", r"egn|егн", BARE_10),
    Identity("Canadian SIN", "ca.sin", r"sin|nas|social insurance", f"999-999-999|{GROUPS_9}"),
    Identity("Chilean RUT", "cl.rut", r"rut", "99999999-X|9999999-X", "99.999.999-X|9.999.999-X"),
    Identity("Chinese identity number", "cn.ric", alone="9" * 17 + "X"),
    # python-stdnum asks that the place was so numbered in the year of birth; that of the first registration counts.
    Identity("Chinese identity number", "iso7064.mod_11_2", r"身份证\w*", "9" * 17 + "X"),
    Identity("Croatian OIB", "hr.oib", r"oib", BARE_11),
    Identity("Czech or Slovak birth number", "cz.rc", r"rodn\w*|rč", BARE_10, "999999/9999"),
    Identity("Dominican cédula", "do.cedula", r"c[ée]dula", BARE_11, "999-9999999-9"),
    Identity("Dutch BSN", "nl.bsn", r"bsn|burgerservice\w*|sofi\w*", GROUPS_9, "9999.99.999"),
    Identity("Ecuadorian cédula", "ec.ci", r"c[ée]dula", f"999999999-9|{BARE_10}"),
    Identity("Estonian isikukood", "ee.ik", r"isikukood", BARE_11),
    Identity("Finnish hetu", "fi.hetu", alone="999999-999X|999999+999X|999999A999X"),
    Identity(
        "French NIR", "fr.nir", r"nir|s[ée]cu\w*|insee", "99999XX99999999|99999XX999999 99", "9 99 99 XX 999 999 99"
    ),
    Identity("German tax number", "de.idnr", r"steuer\w*|idnr|tin|tax", BARE_11, "99 999 999 999"),
    Identity("Greek AMKA", "gr.amka", r"amka|αμκα", BARE_11),
    Identity("Icelandic kennitala", "is_.kennitala", r"kennitala|kt", f"999999-9999|{BARE_10}"),
    Identity("Indian Aadhaar", "in_.aadhaar", r"aadh?aa?r|uidai", f"9999 9999 9999|9999-9999-9999|{BARE_12}"),
    Identity("Irish PPS number", "ie.pps", r"ppsn?", "9999999A|9999999AA"),
    Identity("Israeli identity number", "il.idnr", r"teudat zehut|israeli id|ת\.?ז|תעודת זהות", BARE_9),
    Identity("Italian codice fiscale", "it.codicefiscale", alone="AAAAAAXXAXXAXXXA"),
    Identity("Korean RRN", "kr.rrn", r"rrn|주민\w*", BARE_13, "999999-9999999"),
    Identity("Lithuanian personal code", "lt.asmens", r"asmens\w*", BARE_11),
    Identity("Mexican CURP", "mx.curp", alone="AAAA999999AAAAAAX9"),
    Identity("NHS number", "gb.nhs", r"nhs", f"999 999 9999|999-999-9999|{BARE_10}"),
    Identity("Norwegian fødselsnummer", "no.fodselsnummer", alone=f"999999 99999|{BARE_11}"),
    Identity("Polish PESEL", "pl.pesel", r"pesel", BARE_11),
    Identity("Portuguese NIF", "pt.nif", r"nif|contribuinte", GROUPS_9),
    Identity("Romanian CNP", "ro.cnp", r"cnp", BARE_13),
    Identity("Russian INN", "ru.inn", r"инн|inn", BARE_12),
    Identity("Slovenian EMŠO", "si.emso", r"em[šs]o|jmbg", BARE_13),
    Identity("South African ID", "za.idnr", r"(?:rsa|sa) id|id (?:no|number)|identity", f"999999 9999 999|{BARE_13}"),
    Identity("Spanish DNI", "es.dni", r"dni|nif|documento", "99999999A|99999999 A", "99.999.999-A|99999999-A"),
    Identity("Spanish NIE", "es.nie", r"nie|extranjero", "A9999999A|A9999999-A", "A-9999999-A"),
    Identity(
        "Swedish personnummer", "se.personnummer", r"person\w*", f"{BARE_10}|{BARE_12}", "999999-9999|99999999-9999"
    ),
    Identity("Swiss AHV number", "ch.ssn", alone="756.9999.9999.99|7569999999999"),
    Identity("Thai identity number", "th.pin", alone="9-9999-99999-99-9"),
    Identity("Turkish identity number", "tr.tckimlik", r"kimlik\w*|tckn", BARE_11),
    Identity("Ukrainian tax number", "ua.rntrc", r"рнокпп|іпн", BARE_10),
)
IDENTITY_STARTS = re.compile(rf"(?=[0-9A-Z]){START}(?<![0-9][-./])(?=[A-Z]{{0,6}}-?[0-9](?:[ ./+-]?[0-9A-Z]){{7}})")


def national_ids(text: str) -> Iterator[Hit]:
    """Checksum, and a form or a cue: 60 characters before, 25 after, or a value of the same kind right before."""
    if digits(text) < 7:
        return
    last: dict[str, int] = {}
    for start in (match.start() for match in IDENTITY_STARTS.finditer(text)):
        if NUMBER_OF.search(text[max(0, start - 30) : start]):
            continue
        for one in IDENTITIES:
            alone, cued, cue = one.patterns
            match = alone.match(text, start) or cued.match(text, start)
            if not match or not one.passes(match[0]):
                continue
            end = match.end()
            near = start - last.get(one.kind, -99) < 60 or cue.search(text, max(0, start - 60), end + 25)
            if near or match.re is alone:
                last[one.kind] = end
                yield start, end, one.kind, bare(match[0])
                break
