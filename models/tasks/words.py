"""Words and sentences the recall task is made of: what can be told, how it is said, asked and answered. Data only; knows no chunks.

In every list of phrasings the last entry is held out of training, and so is every fifth value: see `parts`.
"""

from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Fact:
    """One kind of fact. told: statements with {v} (and {w}, a second value that is not asked for). asked: questions. reply: the answer's form."""

    values: tuple[str, ...]
    told: tuple[str, ...]
    asked: tuple[str, ...]
    reply: str
    others: tuple[str, ...] = ()


def parts(items: tuple[T, ...], split: str, every: int = 5) -> tuple[T, ...]:
    """The items of a split: `validation` gets every fifth value, `train` the others."""
    held = split == "validation"
    return tuple(v for i, v in enumerate(items) if (i % every == every - 1) == held)


def phrasings(items: tuple[str, ...], split: str) -> tuple[str, ...]:
    """All but the last for `train`, the last for `validation`."""
    return items[-1:] if split == "validation" else items[:-1]


def _w(text: str) -> tuple[str, ...]:
    return tuple(word.replace("_", " ") for word in text.split())


NAMES = _w(
    "Alice Bob Carol David Emma Frank Grace Henry Irene Jack Karen Leo Maria Nathan Olivia Peter Quinn Rachel Sam Tina Victor Wendy Yara Zoe "
    "Omar Priya Diego Chen Fatima Ivan Lucas Nina Hugo Clara Felix Rosa Martin Julia Oscar Elena Simon Laura Walter Sofia George Hannah Paul "
    "Lily Arthur Eva Ben Mia Kenji Aisha Pablo Ingrid Sven Chloe Marcus Daisy Theo Ruby Adam Violet Noah Iris Tom Bella Anton Greta Kurt Nora "
    "Emil Lena Max Ada Carlos Tara Boris Amy Jonas Edith Raj Monica Luis Helen Yusuf Stella Erik Joan Samir Alma Dennis Ella Mateo Judy Finn Gina"
)
CITIES = _w(
    "Paris London Tokyo Berlin Madrid Rome Cairo Delhi Lima Oslo Boston Chicago Dublin Vienna Athens Seoul Moscow Toronto Sydney Miami Lisbon "
    "Prague Warsaw Helsinki Zurich Geneva Milan Naples Seattle Denver Dallas Houston Portland Atlanta Montreal Havana Bogota Santiago Nairobi "
    "Mumbai Bangkok Hanoi Manila Jakarta Melbourne Auckland Glasgow Munich Hamburg Barcelona Seville Porto Budapest Istanbul Tehran Baghdad"
)
COLORS = _w("red blue green yellow purple orange black white pink brown gold silver gray turquoise violet crimson beige navy maroon teal")
FOODS = _w(
    "pizza sushi pasta soup rice salad bread cheese chicken fish chocolate apples bananas noodles pancakes tacos curry steak potatoes "
    "mushrooms strawberries lasagna dumplings burgers waffles lentils shrimp oranges cookies eggs"
)
ANIMALS = _w(
    "dog cat horse parrot rabbit turtle hamster goat snake goldfish lizard ferret donkey canary pony duck pigeon frog mouse spider"
)
JOBS = _w(
    "teacher doctor lawyer pilot farmer nurse painter chef engineer writer dentist plumber carpenter baker librarian firefighter "
    "journalist gardener photographer electrician architect mechanic tailor waiter musician"
)
DAYS = _w("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = _w("January February March April May June July August September October November December")
HOURS = _w("one two three four five six seven eight nine ten eleven noon")
PLACES = _w(
    "drawer kitchen garage bedroom basement closet bathroom office attic car backpack fridge garden cupboard suitcase hallway desk "
    "basket wardrobe cellar shed mailbox library toolbox pocket"
)
OBJECTS = _w(
    "keys glasses wallet phone umbrella passport camera book scarf ticket hammer laptop letter watch guitar bottle map hat lamp knife"
)
HOBBIES = _w(
    "painting swimming chess hiking photography dancing fishing gardening cycling skiing knitting surfing climbing sailing pottery running"
)
INSTRUMENTS = _w("piano guitar violin drums flute trumpet cello harp saxophone clarinet banjo accordion")
DRINKS = _w("coffee tea juice milk lemonade water cocoa beer wine cider soda smoothies")
LANGUAGES = _w("French Spanish German Italian Japanese Russian Arabic Chinese Portuguese Greek Turkish Swedish Korean Dutch Polish Hindi")
KIN = _w("sister brother mother father aunt uncle cousin neighbor boss friend")
GIFTS = _w("book bike cake painting lamp bracelet ring clock jacket plant toy vase")
THINGS = _w("fence window car table chair boat door radio piano mirror kettle bench")

FACTS: dict[str, Fact] = {
    "name": Fact(NAMES, ("My name is {v}.", "I am called {v}.", "You can call me {v}.", "I'm {v}, nice to meet you.", "Hello, {v} is my name.", "People call me {v}."),
                 ("What is my name?", "Do you remember my name?", "Who am I?", "What am I called?", "Can you tell me my name?"), "Your name is {v}."),
    "city": Fact(CITIES, ("I live in {v}.", "My home is in {v}.", "I moved to {v} last year.", "I am from {v}.", "These days I'm living in {v}.", "My apartment is in {v}."),
                 ("Where do I live?", "Which city do I live in?", "What city is my home in?", "Where is my home?", "Do you know where I live?"), "You live in {v}."),
    "color": Fact(COLORS, ("My favorite color is {v}.", "I like the color {v} most.", "The color I love is {v}.", "{v} is my favorite color.", "Of all colors I prefer {v}."),
                  ("What is my favorite color?", "Which color do I like most?", "What color do I prefer?", "Do you remember my favorite color?"), "Your favorite color is {v}."),
    "food": Fact(FOODS, ("My favorite food is {v}.", "I love eating {v}.", "I could eat {v} every day.", "Nothing tastes better to me than {v}.", "The food I like best is {v}."),
                 ("What is my favorite food?", "What do I love eating?", "What food do I like most?", "Which food do I like best?"), "Your favorite food is {v}."),
    "pet": Fact(ANIMALS, ("I have a pet {v}.", "My pet is a {v}.", "I keep a {v} at home.", "There is a {v} in my house, my pet.", "As a pet I own a {v}."),
                ("What pet do I have?", "What animal is my pet?", "Which animal do I keep at home?", "What kind of pet do I own?"), "You have a {v}."),
    "petname": Fact(NAMES, ("My {w} is called {v}.", "I named my {w} {v}.", "The name of my {w} is {v}.", "{v} is the name of my {w}."),
                    ("What is the name of my {w}?", "What is my {w} called?", "How did I name my {w}?", "What did I call my {w}?"), "Your {w} is called {v}.", ANIMALS),
    "job": Fact(JOBS, ("I work as a {v}.", "My job is {v}.", "I am a {v}.", "I earn my living as a {v}.", "By profession I'm a {v}."),
                ("What is my job?", "What do I work as?", "What do I do for a living?", "What is my profession?"), "You work as a {v}."),
    "hobby": Fact(HOBBIES, ("My hobby is {v}.", "In my free time I enjoy {v}.", "I spend my weekends {v}.", "What I like doing most is {v}."),
                  ("What is my hobby?", "What do I do in my free time?", "How do I spend my weekends?", "What do I like doing most?"), "Your hobby is {v}."),
    "instrument": Fact(INSTRUMENTS, ("I play the {v}.", "I am learning the {v}.", "The instrument I play is the {v}.", "I practice the {v} every evening."),
                       ("Which instrument do I play?", "What instrument am I learning?", "What do I play?", "Which instrument do I practice?"), "You play the {v}."),
    "drink": Fact(DRINKS, ("My favorite drink is {v}.", "I always drink {v} in the morning.", "I like drinking {v}.", "I never start a day without {v}."),
                  ("What is my favorite drink?", "What do I like drinking?", "What do I drink in the morning?", "Which drink do I like?"), "Your favorite drink is {v}."),
    "language": Fact(LANGUAGES, ("I am learning {v}.", "I speak {v} at home.", "My native language is {v}.", "I take {v} lessons."),
                     ("Which language do I speak?", "What language am I learning?", "What is my language?", "Which language did I mention?"), "Your language is {v}."),
    "month": Fact(MONTHS, ("My birthday is in {v}.", "I was born in {v}.", "I celebrate my birthday in {v}.", "{v} is the month of my birthday."),
                  ("When is my birthday?", "In which month was I born?", "In which month is my birthday?", "What month was I born in?"), "Your birthday is in {v}."),
    "meeting": Fact(DAYS, ("The meeting is on {v}.", "The meeting moved to {v}.", "They put the meeting on {v}.", "Our meeting will be held on {v}.", "The meeting was shifted to {v}."),
                    ("When is the meeting?", "On which day is the meeting?", "What day is our meeting?", "Which day was the meeting put on?"), "The meeting is on {v}."),
    "train": Fact(HOURS, ("My train leaves at {v}.", "I have to catch the train at {v}.", "The train departs at {v}.", "My train goes at {v}."),
                  ("When does my train leave?", "At what time does the train depart?", "What time is my train?", "When do I have to catch the train?"), "Your train leaves at {v}."),
    "place": Fact(PLACES, ("I left the {w} in the {v}.", "The {w} is in the {v}.", "I put the {w} in the {v}.", "You will find the {w} in the {v}.", "I stored the {w} in the {v}."),
                  ("Where is the {w}?", "Where did I leave the {w}?", "Where did I put the {w}?", "In which place is the {w}?"), "The {w} is in the {v}.", OBJECTS),
    "kin": Fact(NAMES, ("My {w} is called {v}.", "My {w}'s name is {v}.", "The name of my {w} is {v}.", "I have a {w} named {v}."),
                ("What is my {w}'s name?", "What is the name of my {w}?", "What is my {w} called?", "Do you remember my {w}'s name?"), "Your {w} is called {v}.", KIN),
    "kincity": Fact(CITIES, ("My {w} lives in {v}.", "My {w} moved to {v}.", "My {w} has a house in {v}.", "My {w} is at home in {v}."),
                    ("Where does my {w} live?", "In which city does my {w} live?", "Where is my {w}'s home?", "Which city is my {w} in?"), "Your {w} lives in {v}.", KIN),
    "gave": Fact(NAMES, ("{v} gave me a {w}.", "I got a {w} from {v}.", "{v} brought me a {w}.", "I received a {w} from {v}."),
                 ("Who gave me a {w}?", "From whom did I get the {w}?", "Who brought me the {w}?", "Who was the {w} from?"), "{v} gave you the {w}.", GIFTS),
    "deed": Fact(NAMES, ("{v} repaired the {w}.", "The {w} was repaired by {v}.", "{v} fixed the {w} for us.", "It was {v} who repaired the {w}."),
                 ("Who repaired the {w}?", "Who fixed the {w}?", "By whom was the {w} repaired?", "Who was it that repaired the {w}?"), "{v} repaired the {w}.", THINGS),
}  # fmt: skip
