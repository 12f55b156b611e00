"""Dates and times of day as people and programs write them: a pattern, and what around a match speaks against it.

Knows names of months and days in some languages, and no calendar: what is found is never read as a time.
"""

from __future__ import annotations

import re

CONTEXT_CHARACTERS = 32

ENGLISH_MONTHS = "January February March April May June July August September October November December"
OTHER_MONTHS = (
    "Januar Jänner Februar März Mai Juni Juli Oktober Dezember",  # German
    "janvier février mars avril mai juin juillet août septembre octobre novembre décembre",
    "enero febrero marzo abril mayo junio julio agosto septiembre setiembre octubre noviembre diciembre",
    "gennaio febbraio aprile maggio giugno luglio settembre ottobre dicembre",
    "janeiro fevereiro março maio junho julho setembro outubro novembro dezembro",
    "januari februari maart mei augustus oktober",  # Dutch
    "maj augusti marts",  # Scandinavian
    "stycznia lutego marca kwietnia maja czerwca lipca sierpnia września października listopada grudnia",
    "января февраля марта апреля мая июня июля августа сентября октября ноября декабря",
    "січня лютого березня квітня травня червня липня серпня вересня жовтня листопада грудня",
    "Ocak Şubat Mart Nisan Mayıs Haziran Temmuz Ağustos Eylül Ekim Kasım Aralık",  # noqa: RUF001
    "ledna února března dubna května června července srpna září října listopadu prosince",
)
DAYS = (
    "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    "Montag Dienstag Mittwoch Donnerstag Freitag Samstag Sonnabend Sonntag",
    "lundi mardi mercredi jeudi vendredi samedi dimanche",
    "lunes martes miércoles jueves viernes sábado domingo",
    "lunedì martedì mercoledì giovedì venerdì sabato domenica",
    "segunda-feira terça-feira quarta-feira quinta-feira sexta-feira",
    "maandag dinsdag woensdag donderdag vrijdag zaterdag zondag",
    "måndag tisdag onsdag torsdag fredag lördag söndag mandag tirsdag lørdag søndag",
    "poniedziałek wtorek środa czwartek piątek sobota niedziela",
    "понедельник вторник среда четверг пятница суббота воскресенье",
)


def _any_of(*lists: str) -> str:
    """The longest first, so that none hides another."""
    return "|".join(sorted({word for words in lists for word in words.split()}, key=lambda word: (-len(word), word)))


def _capital(*lists: str) -> str:
    """Written as a name or all in capitals, which words of sentences are not."""
    words = {form for words in lists for word in words.split() for form in (word, word.upper())}
    return f"(?-i:{_any_of(' '.join(words))})"


_SHORT_MONTHS = "Jan Feb Mar Apr Jun Jul Aug Sep Sept Oct Nov Dec"
_MONTH = rf"(?:{_any_of(ENGLISH_MONTHS, *OTHER_MONTHS)}|(?:{_any_of(_SHORT_MONTHS)})\b\.?)(?!\w)"
_NAMED_MONTH = rf"(?:{_capital(ENGLISH_MONTHS)}\b|{_capital(_SHORT_MONTHS)}\b\.?)"
_LONG_MONTHS = _any_of(*(word for words in OTHER_MONTHS for word in words.split() if len(word) > 4))  # none is a word
_SHORT_DAY = rf"{_capital('Mon Tue Tues Wed Weds Thu Thur Thurs Fri Sat Sun')}\b\.?"
_DAY = (
    rf"(?:(?:{_any_of(*DAYS)})\b|星期[一二三四五六日天]|周[一二三四五六日]|[月火水木金土日]曜日?|[월화수목금토일]요일)"
)
_BARE_CLOCK = r"(?:[01]?\d|2[0-4]):[0-5]\d"
_HALF_DAY = "(?:上午|下午|午前|午後|早上|晚上|오전|오후)"
_CLOCK = (
    rf"(?:{_BARE_CLOCK}(?::\d{{2}}(?:[.,]\d+)?)?(?:\s*[ap]\.?m\b\.?)?|\d{{1,2}}\s*[ap]\.?m\b\.?"
    r"|\d{1,2}(?:[.:]\d{2})?\s+Uhr\b|\d{1,2}\s?h\s?[0-5]\d\b"
    rf"|(?:{_HALF_DAY}\s*)?\d{{1,2}}\s*[时時点點시]\s*\d{{1,2}}\s*[分분](?:\s*\d{{1,2}}\s*[秒초])?"
    rf"|{_HALF_DAY}\s*\d{{1,2}}\s*[时時点點시])"
)
_ZONE = r"(?:\s*(?:z|utc|gmt|(?-i:[A-Z]{2,4}T))\b|\s*[+-]\d{2}:?\d{2})?"
_NTH = r"\d{1,2}(?:st|nd|rd|th|er|º)?\.?"
_DATES = (
    r"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}",
    r"\d{1,2}[-/]\d{1,2}[-/]\d{2,4}",
    r"\d{1,2}\.\d{1,2}\.\d{4}|(?:0[1-9]|[12]\d|3[01])\.(?:0[1-9]|1[0-2])\.\d{2}(?!\d)",
    r"\d{4}-W\d{2}(?:-\d)?",
    r"\d{1,2}\s+[\u0370-\u1fff]+\s+\d{4}",  # the months of all scripts between Latin and those of East Asia
    rf"{_MONTH}\s+\d{{4}}(?!\d)",
    rf"{_MONTH}\s+\d{{1,2}}(?:st|nd|rd|th)?,?\s+\d{{4}}(?!\d)",
    rf"{_NAMED_MONTH}\s+\d{{1,2}}(?:st|nd|rd|th)?(?!\w)",
    rf"{_NTH}\s+(?:(?:of|de)\s+)?{_MONTH}(?:,?\s+(?:del?\s+)?\d{{4}}(?!\d))",
    rf"{_NTH}\s+(?:(?:of|de)\s+)?(?:{_NAMED_MONTH}|(?:{_LONG_MONTHS})\b)",
    rf"\d{{1,2}}-{_MONTH}-\d{{2,4}}",
    rf"\d{{1,2}}\s{_NAMED_MONTH}\s\d{{2}}(?!\d)",
    r"(?:\d{1,4}\s*年\s*)?\d{1,2}\s*月\s*\d{1,2}\s*[日号號]|\d{4}\s*年\s*\d{1,2}\s*月",
    r"(?:\d{2,4}\s*년\s*)?\d{1,2}\s*월\s*\d{1,2}\s*일|\d{4}\s*년\s*\d{1,2}\s*월",
    r"20\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])(?:[t_-]?\d{4,6})?z?(?!\d)",
)
_DATE = f"(?:{'|'.join(_DATES)})"
_AT = r"(?:\s*,?\s*(?:(?:at|um|à|a las|alle|às)\s+)?|t)"
_SINCE = r"(?:\d+|an?)\s*(?:s|sec|min|h|d|second|minute|hour|day|week|month|year)s?\s+ago"
_START = r"(?:(?<![\w.])|(?<=[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]))"  # words of these scripts have no spaces
_TIME = (
    rf"{_START}(?:(?:(?:{_DAY}|{_SHORT_DAY}|[^\W\d_]{{2,4}}[.,]),?\s+(?:(?:der|den|le|el)\s+)?)?"
    rf"{_DATE}(?:{_AT}{_CLOCK}{_ZONE})?"
    rf"|(?:{_DAY}|{_SHORT_DAY}),?\s+{_CLOCK}{_ZONE}"
    rf"|{_CLOCK}{_ZONE}|{_DAY}|{_SHORT_DAY}(?!\s*\w)|{_SINCE}|(?P<seconds>1[5-9]\d{{8}}(?:\d{{3}}|\.\d+)?)(?!\d))"
)
TIME = re.compile(_TIME, re.IGNORECASE)
BARE_CLOCK = re.compile(_BARE_CLOCK)
NO_CLOCK_BEFORE = re.compile(
    r"\b(?:ratios?|scores?|scored|scale|odds|verses?|psalms?|chapters?|surah?|won|lost|lose|beat|results?|vot(?:e|es|ed|ing)"
    r"|aspect|proportions?|majority|passed|carried|rejected)\b[^\n.;]*$",
    re.IGNORECASE,
)
NO_CLOCK_BEHIND = re.compile(
    r"\W*(?:in favou?r|against|votes?|voted|ratio|scale|odds|victory|win|defeat|lead|majority|aspect|display|screen)\b",
    re.IGNORECASE,
)
VERSION_BEFORE = re.compile(r"\b(?:v|ver|versions?)\W{0,3}$", re.IGNORECASE)
PADDED = re.compile(r"0\d:|\d+:0\d")
# As `John 3:16`: a name before it, other than words that come before times.
NAME_BEFORE = re.compile(r"\b[A-Z][a-z]+\.? $")
TIME_WORD_BEFORE = re.compile(
    r"\b(?:time|now|at|from|since|until|till|date|clock|today|tonight|tomorrow|yesterday|before|after|around|about|updated"
    r"|started|ended|as of|um|heute|jetzt):? $",
    re.IGNORECASE,
)
SECONDS_BEFORE = re.compile(
    r"(?:(?:\b|_)(?:(?:date|file|unix|up|now)?_?time(?:stamp)?s?|ts|now|epoch|unix|dates?|since|until|at|as of|created"
    r"|updated|modified|expires|expiry|iat|exp|nbf|clock|today|seconds|zeit|heure|hora)|(?-i:[a-z](?:At|Time|Timestamp|Ts)))"
    r"\b(?:\s*\([^)\n]*\))?\W{0,8}(?:is\W+)?$",
    re.IGNORECASE,
)


def is_time(match: re.Match[str]) -> bool:
    """Whether a match of `TIME` is one by what stands around it: other numbers look like clocks and like seconds."""
    start, end = match.span()
    before = match.string[max(start - CONTEXT_CHARACTERS, 0) : start]
    if VERSION_BEFORE.search(before):
        return False
    if match["seconds"]:
        return SECONDS_BEFORE.search(before) is not None
    if BARE_CLOCK.fullmatch(match.group()):
        return _is_clock(match.group(), before, match.string[end : end + CONTEXT_CHARACTERS])
    return True


def _is_clock(text: str, before: str, behind: str) -> bool:
    """Rather than a verse, a ratio or a vote."""
    if NO_CLOCK_BEHIND.match(behind):
        return False
    if TIME_WORD_BEFORE.search(before):
        return True
    return not NO_CLOCK_BEFORE.search(before) and bool(PADDED.match(text) or not NAME_BEFORE.search(before))
