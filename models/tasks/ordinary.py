"""Questions that need no memory, for training: what a memory must leave as the backbone would answer it. Data only."""

import random

_COUNTRIES = [
    "Spain",
    "Italy",
    "Germany",
    "Japan",
    "Egypt",
    "Canada",
    "Mexico",
    "Norway",
    "Greece",
    "Poland",
    "India",
    "China",
    "Kenya",
    "Peru",
    "Portugal",
    "Austria",
    "Turkey",
    "Sweden",
    "Ireland",
    "Cuba",
]
_BOOKS = (
    "Hamlet",
    "Moby Dick",
    "Pride and Prejudice",
    "War and Peace",
    "Don Quixote",
    "The Odyssey",
    "Frankenstein",
    "Dracula",
    "Oliver Twist",
    "1984",
)
_CONCEPTS = (
    "inflation", "evolution", "electricity", "a verb", "democracy", "an atom", "friction", "a volcano", "magnetism", "an ecosystem", "a prime number",
    "recycling", "a metaphor", "oxygen", "a computer virus", "the water cycle", "a black hole", "insulin", "a solar eclipse", "a republic", "sound", "a fossil",
)  # fmt: skip
_TASKS = ("cook beans", "tie a tie", "plant a tree", "learn to swim", "make tea", "fix a flat tire", "write a letter", "clean a window", "sleep better",
          "save money", "bake bread", "study for a test", "remove a stain", "lose weight", "train a dog")  # fmt: skip
_TOPICS = (
    "the sea",
    "winter",
    "friendship",
    "a train",
    "bread",
    "the night",
    "music",
    "a garden",
    "school",
    "the sun",
    "a lion",
    "books",
    "the city",
)
_GROUPS = (
    "fruits",
    "planets",
    "European countries",
    "musical instruments",
    "farm animals",
    "oceans",
    "vegetables",
    "tools",
    "sports",
    "metals",
    "birds",
)
_ADJECTIVES = (
    "big",
    "fast",
    "sad",
    "bright",
    "quiet",
    "easy",
    "brave",
    "rich",
    "soft",
    "angry",
    "clean",
    "strong",
    "early",
    "full",
    "young",
)
_WHY = ("is the sea salty", "do leaves fall in autumn", "do we sleep", "is ice slippery", "do cats purr", "is exercise important", "do birds sing",
        "does the moon change its shape", "do we need water", "is honey sweet")  # fmt: skip
_MADE = (
    "the telephone",
    "the light bulb",
    "the airplane",
    "penicillin",
    "America",
    "the Starry Night",
    "the theory of relativity",
    "the steam engine",
    "gravity",
)
_ANIMALS = ("cows", "frogs", "owls", "sharks", "pandas", "ants", "wolves", "dolphins", "horses", "whales")
_FORMS = (
    ("What is the capital of {}?", _COUNTRIES), ("What language do people speak in {}?", _COUNTRIES), ("Tell me a fact about {}.", _COUNTRIES),
    ("Who wrote {}?", _BOOKS), ("What is {} about?", _BOOKS), ("What is {}?", _CONCEPTS), ("Explain {} to me.", _CONCEPTS), ("How do I {}?", _TASKS),
    ("Give me some advice on how to {}.", _TASKS), ("Write a sentence about {}.", _TOPICS), ("Write a short poem about {}.", _TOPICS),
    ("Name three {}.", _GROUPS), ("Give me a list of {}.", _GROUPS), ("What is a synonym for {}?", _ADJECTIVES), ("What is the opposite of {}?", _ADJECTIVES),
    ("Why {}?", _WHY), ("Who discovered or invented {}?", _MADE), ("Who made {}?", _MADE), ("What do {} eat?", _ANIMALS), ("Where do {} live?", _ANIMALS),
)  # fmt: skip
_PLAIN = ("Hello!", "How are you?", "Can you help me?", "Tell me a joke.", "Thank you very much.", "What can you do?", "Good morning!", "Please continue.",
          "I am bored.", "Tell me a story.", "What should I cook tonight?", "Who are you?", "I feel tired today.")  # fmt: skip


def question(rng: random.Random) -> str:
    """A question of general knowledge, a small sum, a request or a greeting."""
    roll = rng.random()
    if roll < 0.1:
        return rng.choice(_PLAIN)
    if roll < 0.2:
        sign = rng.choice(("plus", "minus", "times"))
        return f"What is {rng.randint(2, 30)} {sign} {rng.randint(2, 12)}?"
    form, fill = rng.choice(_FORMS)
    return form.format(rng.choice(fill))
