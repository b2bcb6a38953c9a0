"""The quickstart's own language: its words, its grammar, its stories and a task about them.

Everything is a function of a seed, so the quickstart needs no download. Words are a stem of five
letters and endings; the tokenizer cuts exactly there:

    nimek+i  sorat+ta  pavol+el+m .        nimek-PLURAL  sorat-OBJECT  pavol-PAST-PLURAL

A noun belongs to one of two classes, with which its adjective agrees (`-u` or `-e`); the verb
agrees in number with its subject (`-m`). The base model reads stories in which an event is told and
told again, in other tenses, denied, of one or of many. The task comes in a form that no story has:
an instruction, a sentence, and the one right answer. It is tested on verbs and nouns that no
training item contains.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

NUM_NOUNS, NUM_VERBS, NUM_ADJECTIVES = 48, 30, 8
PLURAL, OBJECT, VERB_PLURAL = "i", "ta", "m"
TENSES = {"present": "a", "past": "el", "future": "os"}
CLASS_ENDINGS = ("u", "e")
NEGATION = "ne"
TELLS = {"present": "nu", "past": "dor", "future": "zai"}
"""Words that open a retelling, one for each tense."""
TASKS = ("past", "future", "plural", "negate", "who")
MARKS = ("[", "]", "=")
"""Signs of the task's form; no story has them, nor the names of the tasks."""


@dataclass(frozen=True)
class Phrase:
    """A noun with its class, number and perhaps an adjective."""

    noun: str
    noun_class: int
    plural: bool
    adjective: str | None

    def text(self, *, is_object: bool) -> str:
        """The phrase as words: `nimeki tavoru` or, as an object, `nimekita tavoru`."""
        noun = self.noun + (PLURAL if self.plural else "") + (OBJECT if is_object else "")
        if self.adjective is None:
            return noun
        return f"{noun} {self.adjective}{CLASS_ENDINGS[self.noun_class]}"


@dataclass(frozen=True)
class Event:
    """Who does what to whom, and when."""

    subject: Phrase
    thing: Phrase
    verb: str
    tense: str
    negated: bool = False

    def text(self) -> str:
        """One sentence: subject, object, verb, full stop."""
        ending = TENSES[self.tense] + (VERB_PLURAL if self.subject.plural else "")
        negation = f"{NEGATION} " if self.negated else ""
        subject, thing = self.subject.text(is_object=False), self.thing.text(is_object=True)
        return f"{subject} {thing} {negation}{self.verb}{ending} ."


@dataclass(frozen=True)
class Item:
    """One question of the task with its only right answer."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class Lexicon:
    """The stems of the language; a noun's class is its place modulo 2."""

    nouns: tuple[str, ...]
    verbs: tuple[str, ...]
    adjectives: tuple[str, ...]

    def pieces(self) -> list[str]:
        """Every piece that the tokenizer knows, endings marked with `##`."""
        endings = [PLURAL, OBJECT, VERB_PLURAL, *TENSES.values(), *CLASS_ENDINGS]
        words = [".", ":", NEGATION, *TELLS.values(), *MARKS, *TASKS]
        stems = [*self.nouns, *self.verbs, *self.adjectives]
        return [*words, *(f"##{ending}" for ending in endings), *stems]


def make_lexicon(seed: int) -> Lexicon:
    """Distinct stems, all of five letters (so that a word is cut in one way only)."""
    rng = random.Random(f"lexicon {seed}")
    num_stems = NUM_NOUNS + NUM_VERBS + NUM_ADJECTIVES
    stems: dict[str, None] = {}
    while len(stems) < num_stems:
        letters = (
            rng.choice("bdfgklmnprstvz" if place % 2 == 0 else "aeiou") for place in range(5)
        )
        stems["".join(letters)] = None
    names = list(stems)
    verbs_end = NUM_NOUNS + NUM_VERBS
    return Lexicon(
        tuple(names[:NUM_NOUNS]), tuple(names[NUM_NOUNS:verbs_end]), tuple(names[verbs_end:])
    )


def _phrase(rng: random.Random, lexicon: Lexicon, nouns: range | list[int]) -> Phrase:
    place = rng.choice(nouns)
    adjective = rng.choice(lexicon.adjectives) if rng.random() < 0.4 else None
    return Phrase(lexicon.nouns[place], place % 2, rng.random() < 0.4, adjective)


def make_event(
    rng: random.Random, lexicon: Lexicon, nouns: list[int], verbs: list[int], tense: str
) -> Event:
    """An event about some of the nouns and verbs, given by their places in the lexicon."""
    subject, thing = (_phrase(rng, lexicon, nouns) for _ in range(2))
    negated = rng.random() < 0.15
    return Event(subject, thing, lexicon.verbs[rng.choice(verbs)], tense, negated)


def make_stories(lexicon: Lexicon, num_stories: int, seed: int) -> Iterator[str]:
    """Stories of one event, told and then told again in other ways by four who heard of it."""
    rng = random.Random(f"stories {seed}")
    nouns, verbs = list(range(NUM_NOUNS)), list(range(NUM_VERBS))
    for _ in range(num_stories):
        event = make_event(rng, lexicon, nouns, verbs, rng.choice(sorted(TENSES)))
        sentences = [event.text()]
        for _ in range(4):
            event = _retold(rng, event)
            sentences.append(f"{TELLS[event.tense]} : {event.text()}")
        yield " ".join(sentences)


def _retold(rng: random.Random, event: Event) -> Event:
    """The same event in another tense, at times denied, or told of one or of many."""
    event = replace(event, tense=rng.choice([t for t in sorted(TENSES) if t != event.tense]))
    if rng.random() < 0.2:
        event = replace(event, negated=not event.negated)
    if rng.random() < 0.2:
        event = replace(event, subject=replace(event.subject, plural=not event.subject.plural))
    return event


def make_items(lexicon: Lexicon, num_items: int, seed: int, *, held_out: bool) -> list[Item]:
    """Items of the task. One noun and one verb in six are held out for the test, never trained on.

    `held_out=False` gives items of the training part, `True` items whose every noun and verb is one
    that no training item contains.
    """
    rng = random.Random(f"items {seed} {held_out}")
    nouns = [place for place in range(NUM_NOUNS) if (place % 6 == 5) == held_out]
    verbs = [place for place in range(NUM_VERBS) if (place % 6 == 5) == held_out]
    items: dict[Item, None] = {}
    while len(items) < num_items:
        event = make_event(rng, lexicon, nouns, verbs, rng.choice(sorted(TENSES)))
        if item := answer_to(rng.choice(TASKS), event):
            items[item] = None
    return list(items)


def answer_to(task: str, event: Event) -> Item | None:
    """The task's question about an event; None where the answer would be the sentence itself."""
    if task == "who":
        answer = f"{event.subject.text(is_object=False)} ."
    else:
        answer = _changed(task, event).text()
    question = event.text()
    return None if answer == question else Item(f"[ {task} ] {question} =", f" {answer}")


def _changed(task: str, event: Event) -> Event:
    if task == "plural":
        return replace(event, subject=replace(event.subject, plural=True))
    if task == "negate":
        return replace(event, negated=True)
    return replace(event, tense=task)
