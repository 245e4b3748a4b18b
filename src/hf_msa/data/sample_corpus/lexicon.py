"""The sample corpus's words: what each does to a sentence's sentiment, and the topics that fill the rest.

Every word belongs to exactly one role, so a sentence can be scored by looking up its words (`grammar.score_tokens`).
All words are lower-case and become whole tokens of the corpus's own tokenizer.
"""

from collections.abc import Iterable

#: Graded sentiment words: valence in label units, before any modifier.
CUES: dict[str, float] = {
    # positive
    "okay": 0.3, "decent": 0.5, "pleasant": 0.7, "solid": 0.8, "nice": 0.8, "useful": 0.6, "good": 1.0, "fun": 1.1,
    "clever": 1.0, "charming": 1.2, "enjoyable": 1.2, "impressive": 1.4, "great": 1.5, "delightful": 1.6,
    "beautiful": 1.5, "hilarious": 1.6, "excellent": 1.9, "wonderful": 1.9, "fantastic": 2.0, "amazing": 2.0,
    "brilliant": 2.1, "outstanding": 2.2, "perfect": 2.3,
    # negative
    "average": -0.3, "plain": -0.4, "predictable": -0.5, "uneven": -0.5, "odd": -0.4, "slow": -0.7, "bland": -0.8,
    "weak": -0.9, "dull": -1.0, "bad": -1.1, "boring": -1.2, "messy": -1.0, "silly": -0.6, "disappointing": -1.4,
    "poor": -1.3, "painful": -1.6, "stupid": -1.6, "awful": -1.9, "terrible": -2.0, "horrible": -2.1,
    "disgusting": -2.2, "atrocious": -2.3,
}  # fmt: skip

#: The cues that people reach for first: said three times as often as others of like valence.
COMMON_CUES: tuple[str, ...] = (
    "okay", "nice", "good", "fun", "great", "amazing", "wonderful", "odd", "slow", "weak", "bad", "boring", "awful",
    "terrible",
)  # fmt: skip

#: Words that flip and dampen the sentiment word that follows: its value is multiplied by this.
NEGATORS: dict[str, float] = {"not": -0.6, "never": -0.7, "hardly": -0.4, "barely": -0.3}

#: Words that strengthen the sentiment word that follows.
INTENSIFIERS: dict[str, float] = {
    "very": 1.4, "really": 1.4, "truly": 1.4, "extremely": 1.7, "incredibly": 1.7, "totally": 1.6, "absolutely": 1.6,
    "especially": 1.3,
}  # fmt: skip

#: Words that weaken the sentiment word that follows.
DIMINISHERS: dict[str, float] = {
    "slightly": 0.4, "somewhat": 0.5, "mildly": 0.5, "rather": 0.7, "fairly": 0.7, "kinda": 0.5, "partly": 0.6,
}  # fmt: skip

#: The words that open a contrast: what was said before them counts less.
CONTRASTS: tuple[str, ...] = ("but", "however", "yet")
CONTRAST_WEIGHT = 0.4

#: Hesitations. "you know" is two words, always together.
DISFLUENCIES: tuple[str, ...] = ("um", "uh", "er", "hmm", "ah", "erm")
DISFLUENT_PAIR: tuple[str, str] = ("you", "know")

#: What a video can be about, and the words that only such a video uses.
TOPICS: dict[str, tuple[str, ...]] = {
    "film": (
        "movie", "film", "plot", "acting", "actor", "actress", "script", "director", "scene", "ending", "soundtrack",
        "camera", "dialogue", "trailer", "villain", "hero", "comedy", "sequel", "cinema", "animation", "stunt", "cast",
    ),
    "phone": (
        "phone", "screen", "battery", "charger", "button", "speaker", "keyboard", "display", "software", "update",
        "lens", "case", "cable", "menu", "ringtone", "antenna", "sensor", "storage", "headset", "microphone", "app",
        "touchpad",
    ),
    "restaurant": (
        "restaurant", "waiter", "kitchen", "soup", "pasta", "dessert", "table", "burger", "salad", "coffee", "chef",
        "sauce", "bread", "starter", "lunch", "dinner", "steak", "pizza", "curry", "drink", "terrace", "bill",
    ),
    "book": (
        "book", "novel", "chapter", "author", "cover", "prose", "narrator", "paragraph", "page", "character", "poem",
        "library", "edition", "essay", "preface", "title", "translation", "series", "mystery", "biography", "print",
        "volume",
    ),
    "hotel": (
        "hotel", "room", "lobby", "bed", "pillow", "shower", "towel", "balcony", "pool", "elevator", "breakfast",
        "reception", "window", "carpet", "corridor", "minibar", "garden", "parking", "bathroom", "key", "lamp", "view",
    ),
}  # fmt: skip

#: Words that any video uses, by the place that they take in a clause.
DETERMINERS: tuple[str, ...] = ("the", "this", "that", "their", "our", "his", "her", "another")
COMMON_NOUNS: tuple[str, ...] = (
    "thing", "part", "beginning", "middle", "idea", "price", "quality", "style", "pace", "design", "music", "story",
    "version", "place", "experience", "service", "atmosphere", "detail", "moment", "choice",
)  # fmt: skip
COPULAS: tuple[str, ...] = ("was", "is", "felt", "seemed", "looked", "sounded", "became", "stayed", "remained", "got")
PRONOUNS: tuple[str, ...] = ("i", "we", "they", "he", "she", "people", "everyone", "somebody", "folks", "most")
OPINION_VERBS: tuple[str, ...] = ("thought", "believe", "think", "guess", "said", "figured", "suppose", "heard")
IT: tuple[str, ...] = ("it", "everything", "all", "which")
ACTION_VERBS: tuple[str, ...] = (
    "saw", "watched", "tried", "bought", "used", "found", "opened", "visited", "picked", "showed", "mentioned", "took",
    "noticed", "compared", "described", "finished", "started", "reviewed", "checked", "borrowed", "held", "brought",
    "returned",
)  # fmt: skip
TIMES: tuple[str, ...] = (
    "yesterday", "today", "again", "twice", "recently", "earlier", "tonight", "online", "together", "later", "monday",
    "friday", "sunday", "once", "first", "finally", "afterwards", "anyway", "there", "here",
)  # fmt: skip
PREPOSITIONS: tuple[str, ...] = (
    "with",
    "about",
    "from",
    "near",
    "behind",
    "without",
    "before",
    "after",
    "during",
    "in",
)
COMPANIONS: tuple[str, ...] = (
    "brother", "sister", "friend", "mother", "father", "family", "neighbour", "colleague", "cousin", "teacher", "kids",
    "parents", "roommate", "uncle", "aunt", "boss",
)  # fmt: skip
POSSESSIVES: tuple[str, ...] = ("my", "your", "its", "some", "every", "one", "each", "any")
CONJUNCTIONS: tuple[str, ...] = ("and", "because", "since", "while", "so", "when", "also", "then", "plus", "as")
OPENERS: tuple[str, ...] = ("well", "now", "right", "alright", "hello", "hey", "look", "listen", "yeah", "oh")

#: What the fields of a plan are called; no clip says it.
PLAN_FIELDS: tuple[str, ...] = ("entity", "action", "sentiment")


def all_words() -> list[str]:
    """Return every word that a sentence can hold, each once, in a fixed order."""
    groups: list[Iterable[str]] = [
        CUES, NEGATORS, INTENSIFIERS, DIMINISHERS, CONTRASTS, DISFLUENCIES, DISFLUENT_PAIR, fillers(),
    ]  # fmt: skip
    return list(dict.fromkeys(word for group in groups for word in group))


def fillers() -> list[str]:
    """Return every word that says nothing about sentiment, each once, in a fixed order."""
    groups = [
        *TOPICS.values(), DETERMINERS, COMMON_NOUNS, COPULAS, PRONOUNS, OPINION_VERBS, IT, ACTION_VERBS, TIMES,
        PREPOSITIONS, COMPANIONS, POSSESSIVES, CONJUNCTIONS, OPENERS,
    ]  # fmt: skip
    return list(dict.fromkeys(word for group in groups for word in group))
