"""Many more ways to tell and to ask than words.py has, for training alone, and values drawn from a whole vocabulary.

A memory trained on a few hundred names answers a new one with its neighbour (Rafael for Luis): only values that cannot be guessed teach it to
copy. Never says what words.py holds out: neither its values nor its phrasings, whatever stands around them. Knows text; no tokens, no chunks.

In `asked`, a template that begins with a capital is a question, one with a small letter a clause ("what my name is"), one with @ what is
wanted ("@my name"); the last two are put into sentences of ASK_CLAUSE and ASK_THING.
"""

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from .recall import Told
from .words import CITIES, DAYS, FACTS, FOODS, HOURS, JOBS, KIN, MONTHS, NAMES, PLACES, THINGS, Fact, parts, phrasings

VOCABULARY_SHARE = 0.5  # of the values of kinds that anything may be a value of
LEADS = (
    "", "", "", "", "By the way, ", "Just so you know, ", "Oh, ", "Let me tell you something: ", "Please remember: ", "Actually, ", "Well, ",
    "I should mention that ", "You should know that ", "Hi! ", "Guess what: ", "For the record, ", "I want to tell you that ", "Note that ",
    "One more thing: ", "As I said before, ", "So, ", "Listen, ",
)  # fmt: skip
TAILS = (
    "", "", "", "", "", " That is all for now.", " I thought you should know.", " Please keep it in mind.", " It has been like that for a while.",
    " Anyway, how are you?", " What do you think?", " Isn't that nice?", " Don't forget it.", " I am glad about that.",
)  # fmt: skip
ASK_LEADS = ("", "", "", "", "Quick question: ", "By the way, ", "Tell me, ", "So, ", "Hey, ", "One more thing: ", "I wonder: ", "Now, ")
ASK_CLAUSE = (
    "Can you tell me {}?", "Do you remember {}?", "Do you know {}?", "Please tell me {}.", "I forgot {}.", "Remind me {}.", "Could you remind me {}?",
    "I can't recall {}.", "Did I mention {}?", "Have I told you {}?", "I wonder if you still know {}.", "Tell me {}.",
)  # fmt: skip
ASK_THING = (
    "Tell me {}.",
    "What was {} again?",
    "Do you remember {}?",
    "I forgot {}.",
    "Could you repeat {}?",
    "Please name {}.",
    "And {}?",
    "Say {}.",
)

MORE: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "name": (("I'm {v}.", "The name is {v}.", "My friends know me as {v}.", "This is {v} speaking.", "My parents named me {v}.", "I go by {v}.", "They gave me the name {v}.", "Everyone knows me as {v}.", "I'd like to introduce myself, I'm {v}."),
             ("Who is talking to you?", "what my name is", "what I am called", "who I am", "@my name", "What name did I give you?", "How should you address me?", "What do my friends call me?", "Under which name do you know me?")),
    "city": (("I am living in {v} now.", "We live in {v}.", "My house stands in {v}.", "I have lived in {v} for years.", "I settled in {v}.", "{v} is where I live.", "I come from {v}.", "My address is in {v}.", "I rent a flat in {v}.", "My family lives with me in {v}."),
             ("In which city do I live?", "What is my hometown?", "Where am I from?", "Where is my house?", "which city I live in", "where my home is", "@my city", "Where did I settle?", "What city am I from?", "Which town is my home?", "@the city I live in")),
    "color": (("{v} is the color I like.", "I love {v}, it is my color.", "No color is nicer than {v} to me.", "I paint everything {v}, my favorite color.", "If I can choose a color, I take {v}.", "My best-loved color is {v}."),
              ("Which is my favorite color?", "What color do I love?", "Which color would I choose?", "what my favorite color is", "which color I like", "@the color I like", "What is the color I love?")),
    "food": (("My favorite dish is {v}.", "I am crazy about {v}.", "I eat {v} whenever I can.", "{v} is what I love to eat.", "For dinner I always want {v}.", "There is no better food than {v}.", "I enjoy {v} more than any other food."),
             ("What food do I love?", "What do I want for dinner?", "What is my favorite dish?", "what my favorite food is", "what I love to eat", "@my favorite food", "Which food is my favorite?", "What do I like to eat most?")),
    "pet": (("I own a {v}.", "At home I have a {v}.", "I bought a {v} as a pet.", "My family has a pet, a {v}.", "A {v} lives with me.", "I take care of my {v} every day.", "We have a {v} at home."),
            ("What animal do I have?", "What is my pet?", "Which pet do I have?", "what pet I have", "which animal lives with me", "@my pet", "What animal lives with me?", "Which animal do I take care of?")),
    "petname": (("We call our {w} {v}.", "My {w} answers to {v}.", "Our {w}'s name is {v}.", "I gave my {w} the name {v}.", "My {w} goes by {v}."),
                ("What name does my {w} have?", "what my {w} is called", "what name my {w} has", "@my {w}'s name", "@the name of my {w}", "What name did I give my {w}?", "To what name does my {w} answer?")),
    "job": (("I'm employed as a {v}.", "I found work as a {v}.", "They hired me as a {v}.", "I have been a {v} for ten years.", "My work: I am a {v}.", "I became a {v}.", "I make money as a {v}."),
            ("What is my work?", "What am I employed as?", "Which job do I have?", "what my job is", "what I work as", "@my job", "How do I earn my living?", "What job do I do?", "As what did they hire me?")),
    "hobby": (("I love {v} in my spare time.", "{v} is my hobby.", "Whenever I have time, I go {v}.", "I am really into {v}.", "On Sundays I enjoy {v}.", "My pastime is {v}."),
              ("What do I enjoy in my spare time?", "Which hobby do I have?", "what my hobby is", "what I do in my free time", "@my hobby", "What am I really into?", "What is my pastime?")),
    "instrument": (("I have played the {v} for years.", "I own a {v} and play it.", "I take part in an orchestra with my {v}.", "I can play the {v}.", "My instrument is the {v}."),
                   ("What is my instrument?", "Which instrument can I play?", "what instrument I play", "which instrument I own", "@my instrument", "What instrument do I play?")),
    "drink": (("{v} is my favorite drink.", "I usually drink {v}.", "I love a glass of {v}.", "I drink {v} every day.", "When I am thirsty I take {v}."),
              ("What do I usually drink?", "What is the drink I love?", "what I like to drink", "what my favorite drink is", "@my favorite drink", "What do I drink every day?", "What do I take when I am thirsty?")),
    "language": (("At school I am studying {v}.", "I grew up speaking {v}.", "I can speak {v}.", "The language I learn is {v}.", "My mother tongue is {v}.", "I talk {v} with my family."),
                 ("What language do I speak?", "Which language am I learning?", "what language I speak", "which language I am learning", "@my language", "Which language can I speak?", "What language did I grow up with?")),
    "month": (("My birthday falls in {v}.", "I turn a year older in {v}.", "I was born one day in {v}.", "In {v} I have my birthday.", "My birth month is {v}.", "We always celebrate me in {v}."),
              ("What is my birth month?", "Which month is my birthday in?", "when my birthday is", "in which month I was born", "@my birth month", "When do I celebrate my birthday?", "In which month do I turn a year older?", "When was I born?")),
    "meeting": (("We will meet on {v}.", "The meeting takes place on {v}.", "They scheduled the meeting for {v}.", "The new day for the meeting is {v}.", "The meeting has been set for {v}."),
                ("Which day is the meeting?", "When does the meeting take place?", "when the meeting is", "on which day the meeting is", "@the day of the meeting", "For which day is the meeting scheduled?", "What is the day of our meeting?")),
    "train": (("The train will leave at {v}.", "I take the train at {v}.", "I must be at the station by {v}, then my train leaves.", "The departure of my train is at {v}.", "At {v} my train leaves."),
              ("At what hour does my train leave?", "When is my train?", "when my train leaves", "what time the train departs", "@the time of my train", "When does the train depart?", "What is the departure time of my train?")),
    "place": (("I keep the {w} in the {v}.", "I have put the {w} into the {v}.", "Somebody moved the {w} to the {v}.", "The {w} can be found in the {v}.", "The {w} lies in the {v}.", "I placed the {w} in the {v}.", "Look for the {w} in the {v}."),
              ("Where can I find the {w}?", "Where do I keep the {w}?", "where the {w} is", "where I left the {w}", "@the place of the {w}", "Where should I look for the {w}?", "Where has the {w} been put?", "Where are we keeping the {w}?")),
    "kin": (("My {w} has the name {v}.", "Everybody calls my {w} {v}.", "{v} is what we call my {w}.", "I talked to my {w}, whose name is {v}.", "My {w} goes by the name of {v}."),
            ("Who is my {w}?", "By what name does my {w} go?", "what my {w} is called", "what the name of my {w} is", "@the name of my {w}", "What do we call my {w}?", "How is my {w} called?")),
    "kincity": (("My {w}'s home is {v}.", "You can find my {w} in {v}.", "My {w} has settled in {v}.", "My {w} found a flat in {v}.", "{v} is where my {w} lives."),
                ("What city does my {w} live in?", "Where has my {w} settled?", "where my {w} lives", "in which city my {w} lives", "@my {w}'s city", "Where can I find my {w}?", "Where did my {w} move?")),
    "gave": (("{v} handed me a {w}.", "{v} sent me a {w}.", "The {w} is a present from {v}.", "A {w} was given to me by {v}.", "{v} surprised me with a {w}."),
             ("Who sent me a {w}?", "Who handed me the {w}?", "who gave me the {w}", "from whom I got the {w}", "Whose present is the {w}?", "Who surprised me with a {w}?", "By whom was the {w} given to me?")),
    "deed": (("{v} made repairs to the {w}.", "Thanks to {v} the {w} works again, {v} repaired it.", "{v} has repaired the {w}.", "The {w} has been fixed by {v}.", "{v} mended the {w}."),
             ("Who mended the {w}?", "Who has repaired the {w}?", "who repaired the {w}", "who fixed the {w}", "By whom was the {w} fixed?", "Who made repairs to the {w}?")),
}  # fmt: skip

# What is wanted stands before what one asks by: the hardest to find again, since the words of the question stand in a later row than the answer.
FIRST: dict[str, tuple[str, ...]] = {
    "name": ("{v} is what they call me.", "{v} is how I am known."),
    "city": ("{v} has been my home for years.", "In {v} I have my home."),
    "pet": ("A {v} is my pet.",),
    "petname": ("{v} is what my {w} is called.", "{v} is my {w}'s name.", "{v}, that is my {w}."),
    "job": ("A {v} is what I am by trade.",),
    "instrument": ("The {v} is my instrument.",),
    "language": ("{v} is my language.", "{v} is what we speak at home."),
    "month": ("{v} is when I was born.", "In {v} I was born."),
    "meeting": ("{v} is the day we meet.", "On {v} we have the meeting."),
    "train": ("{v} is when my train leaves.",),
    "place": ("The {v} is where I keep the {w}.", "In the {v} I put the {w}.", "In the {v} lies the {w}."),
    "kin": ("{v}, that is my {w}'s name.", "{v} is how my {w} is called."),
    "kincity": ("{v} has been my {w}'s home for years.", "In {v} my {w} has a flat."),
    "gave": ("{v} had a {w} for me.", "Thanks to {v} I have a {w} now.", "{v} is the one who gave me a {w}.", "From {v} I have a {w}."),
    "deed": ("{v} is the person who fixed the {w}.", "{v} took the time to repair the {w}.", "{v} got the {w} working again."),
    "favorite": ("{v} is the {w} I love the most.",),
    "label": ("{v} is what they chose as the {w}.",),
    "role": ("{v} has become my {w}.", "{v} is now my {w}."),
    "number": ("{v} is the number: my {w}.",),
    "kinjob": ("A {v} is what my {w} became.", "As a {v} my {w} earns a living."),
    "kinlikes": ("{v} is what my {w} likes.",),
    "did": ("{v} is the one who {w}.", "I think {v} {w}.", "{v} and nobody else {w}.", "We have to thank {v}, who {w}."),
    "day": ("{v} is the day of the {w}.", "{v} is when we have the {w}."),
    "hour": ("{v} is when the {w} starts.",),
    "where": ("{v} will host the {w}.", "{v} is where they hold the {w}."),
    "owner": ("{v} is the owner of the {w}.", "{v} bought that {w} and owns it."),
    "lent": ("{v} has my {w} at the moment.", "{v} took my {w} along."),
    "study": ("{v} is what I study.", "{v} is my major."),
    "collect": ("{v} is what I collect.",),
    "school": ("{v} is where I went to school.", "In {v} I went to school."),
    "travel": ("{v} is my next destination.", "To {v} I will travel soon."),
    "whereis": ("The {v} is where {w} is.", "In the {v} you will find {w}."),
    "lives": ("{v} is where {w} lives.", "In {v} lives {w}."),
    "works": ("The {v} I know is {w}.",),
    "has": ("A {v} is what {w} carries.",),
}

NAME, CITY, WORD, NUMBER = ("name",), ("city",), ("word",), ("number",)  # pools that are drawn from, in place of lists
_DEEDS = tuple(f"{deed} the {thing}" for deed in ["painted", "sold", "bought", "found", "cleaned", "borrowed", "built", "designed", "ordered", "lost", "delivered", "opened", "closed", "washed", "moved"]
               for thing in (*THINGS, "house", "cake", "letter", "boat", "suitcase", "garden", "shop", "map"))  # fmt: skip
_EVENTS = ("exam", "party", "concert", "appointment", "interview", "game", "wedding", "trip", "lecture", "delivery", "workshop", "picnic")
_RIDES = ("bus", "flight", "ferry", "class", "movie", "phone call", "dinner", "lesson", "show", "race")
_FAVORITES = ("movie", "song", "sport", "season", "author", "game", "flower", "fruit", "restaurant", "singer", "bird", "team", "dessert", "subject",
              "holiday", "store", "tree", "brand", "book", "artist", "actor", "river", "country", "toy", "shirt", "poem", "park", "museum", "word")  # fmt: skip
_LABELS = ("password", "code word", "title of the book", "name of the hotel", "name of the street", "name of the ship", "name of the school", "secret word",
           "brand of the phone", "name of the project", "name of the company", "name of the network", "name of the café", "title of the song", "topic of the talk")  # fmt: skip
_ROLES = (
    "dentist",
    "doctor",
    "teacher",
    "landlord",
    "manager",
    "coach",
    "roommate",
    "lawyer",
    "barber",
    "hero",
    "tutor",
    "partner",
    "assistant",
    "rival",
)
_NUMBERS = (
    "room number",
    "locker number",
    "seat number",
    "age",
    "house number",
    "lucky number",
    "bus line",
    "ticket number",
    "apartment number",
    "score",
)
_SHOPS = ("market", "supermarket", "bakery", "fair", "mall", "corner shop", "airport", "harbor", "flea market", "station")
_MEALS = ("breakfast", "lunch", "dinner", "dessert", "supper")
_OWNED = ("bike", "tent", "ladder", "drill", "suit", "dress", "camera", "book", "guitar", "car", "boat", "blanket", "racket", "coat")

NEW: dict[str, Fact] = {
    "favorite": Fact(WORD, ("My favorite {w} is {v}.", "{v} is my favorite {w}.", "The {w} I love the most is {v}.", "As for my favorite {w}, it is {v}."),
                     ("What is my favorite {w}?", "Which {w} is my favorite?", "what my favorite {w} is", "@my favorite {w}", "Which {w} do I love the most?"), "Your favorite {w} is {v}.", _FAVORITES),
    "label": Fact(WORD, ("The {w} is {v}.", "{v} is the {w}.", "They told me that the {w} is {v}.", "I found out that the {w} is {v}."),
                  ("What is the {w}?", "what the {w} is", "@the {w}", "Do you still know the {w}?"), "The {w} is {v}.", _LABELS),
    "role": Fact(NAME, ("My {w} is {v}.", "{v} is my {w}.", "I have a new {w}: {v}.", "Since last week {v} has been my {w}."),
                 ("Who is my {w}?", "who my {w} is", "What is my {w} called?", "Which person is my {w}?"), "Your {w} is {v}.", _ROLES),
    "number": Fact(NUMBER, ("My {w} is {v}.", "{v} is my {w}.", "They changed my {w} to {v}.", "I have the {w} {v}."),
                   ("What is my {w}?", "what my {w} is", "@my {w}", "Which {w} do I have?"), "Your {w} is {v}.", _NUMBERS),
    "kinjob": Fact(JOBS, ("My {w} works as a {v}.", "My {w} is a {v}.", "My {w} became a {v}.", "My {w} has a job as a {v}."),
                   ("What is my {w}'s job?", "What does my {w} do?", "what my {w} works as", "@my {w}'s job", "What did my {w} become?"), "Your {w} is a {v}.", KIN),
    "kinlikes": Fact(FOODS, ("My {w} likes {v}.", "My {w} is fond of {v}.", "My {w} loves {v}.", "My {w} can't get enough of {v}."),
                     ("What does my {w} like?", "What is my {w} fond of?", "what my {w} likes", "What does my {w} love?"), "Your {w} likes {v}.", KIN),
    "did": Fact(NAME, ("{v} {w}.", "{v} {w} yesterday.", "I heard that {v} {w}.", "Last week {v} {w}.", "Nobody else but {v} {w}."),
                ("Who {w}?", "who {w}", "Which person {w}?", "Do you know the one who {w}?"), "{v} {w}.", _DEEDS),
    "day": Fact(DAYS, ("The {w} is on {v}.", "The {w} takes place on {v}.", "The {w} was moved to {v}.", "We have the {w} on {v}.", "On {v} there is the {w}."),
                ("When is the {w}?", "On which day is the {w}?", "What day is the {w}?", "when the {w} takes place", "@the day of the {w}"), "The {w} is on {v}.", _EVENTS),
    "hour": Fact(HOURS, ("The {w} starts at {v}.", "The {w} is at {v}.", "The {w} begins at {v}.", "At {v} there is the {w}."),
                 ("When does the {w} start?", "What time is the {w}?", "when the {w} begins", "At what time is the {w}?", "@the time of the {w}"), "The {w} is at {v}.", _RIDES),
    "where": Fact(CITY, ("The {w} will be in {v}.", "The {w} happens in {v}.", "They hold the {w} in {v}.", "We go to {v} for the {w}."),
                  ("Where will the {w} be?", "In which city is the {w}?", "where the {w} will be", "Where do they hold the {w}?"), "The {w} will be in {v}.", _EVENTS),
    "owner": Fact(NAME, ("The {w} belongs to {v}.", "{v} owns the {w}.", "The owner of the {w} is {v}.", "That {w} is {v}'s."),
                  ("Who owns the {w}?", "To whom does the {w} belong?", "who owns the {w}", "@the owner of the {w}"), "The {w} belongs to {v}.", _OWNED),
    "lent": Fact(NAME, ("I lent my {w} to {v}.", "{v} borrowed my {w}.", "I let {v} have my {w}.", "My {w} is with {v} now."),
                 ("Who has my {w}?", "To whom did I lend my {w}?", "who borrowed my {w}", "who has my {w}"), "{v} has your {w}.", _OWNED),
    "bought": Fact(WORD, ("I bought a {v} at the {w}.", "At the {w} I got a {v}.", "I found a {v} at the {w}.", "The {w} sold me a {v}."),
                   ("What did I buy at the {w}?", "What did I get at the {w}?", "what I bought at the {w}", "Which thing did I find at the {w}?"), "You bought a {v} at the {w}.", _SHOPS),
    "ate": Fact(FOODS, ("I had {v} for {w}.", "For {w} I ate {v}.", "We made {v} for {w}.", "There was {v} for {w}."),
                ("What did I have for {w}?", "What did I eat for {w}?", "what I had for {w}", "What was there for {w}?"), "You had {v} for {w}.", _MEALS),
    "study": Fact(WORD, ("I study {v}.", "My major is {v}.", "At university I chose {v}.", "I am a student of {v}."),
                  ("What do I study?", "What is my major?", "what I study", "@my major", "What did I choose at university?"), "You study {v}."),
    "allergy": Fact(FOODS, ("I am allergic to {v}.", "I can't stand {v}, I have an allergy.", "{v} makes me sick because of my allergy.", "My allergy is to {v}."),
                    ("What am I allergic to?", "what I am allergic to", "@my allergy", "What makes me sick?"), "You are allergic to {v}."),
    "fear": Fact(WORD, ("I am afraid of {v}.", "My greatest fear is {v}.", "{v} scares me.", "Nothing frightens me like {v}."),
                 ("What am I afraid of?", "What is my greatest fear?", "what scares me", "@my greatest fear"), "You are afraid of {v}."),
    "collect": Fact(WORD, ("I collect {v}.", "I have a collection of {v}.", "My collection is about {v}.", "I keep buying {v} for my collection."),
                    ("What do I collect?", "What is in my collection?", "what I collect", "What do I keep buying?"), "You collect {v}."),
    "school": Fact(CITY, ("I went to school in {v}.", "My school was in {v}.", "I was a pupil in {v}.", "I learned to read at a school in {v}."),
                   ("Where did I go to school?", "Where was my school?", "where I went to school", "In which city was my school?"), "You went to school in {v}."),
    "travel": Fact(CITY, ("I plan to visit {v}.", "My next trip goes to {v}.", "I booked a holiday in {v}.", "Soon I will travel to {v}."),
                   ("Where will I travel?", "Which city do I plan to visit?", "where my next trip goes", "Where did I book a holiday?"), "You will travel to {v}."),
    "married": Fact(MONTHS, ("I got married in {v}.", "My wedding was in {v}.", "We married in {v}.", "{v} was when I got married."),
                    ("When did I get married?", "In which month was my wedding?", "when I got married", "@the month of my wedding"), "You got married in {v}."),
    "whereis": Fact(PLACES, ("{w} went to the {v}.", "{w} is in the {v}.", "I saw {w} in the {v}.", "{w} is waiting in the {v}.", "{w} hides in the {v}."),
                    ("Where is {w}?", "Where did {w} go?", "where {w} is", "Where did I see {w}?"), "{w} is in the {v}.", NAME),
    "lives": Fact(CITY, ("{w} lives in {v}.", "{w} moved to {v}.", "{w} has a flat in {v}.", "The home of {w} is in {v}."),
                  ("Where does {w} live?", "In which city does {w} live?", "where {w} lives", "@the home of {w}"), "{w} lives in {v}.", NAME),
    "works": Fact(JOBS, ("{w} is a {v}.", "{w} works as a {v}.", "{w} got a job as a {v}.", "I met {w}, who is a {v}."),
                  ("What is {w}'s job?", "What does {w} do?", "what {w} works as", "@the job of {w}"), "{w} is a {v}.", NAME),
    "has": Fact(WORD, ("{w} has a {v}.", "{w} carries a {v}.", "I gave {w} a {v}.", "{w} is looking after a {v}."),
                ("What does {w} have?", "What does {w} carry?", "what {w} has", "What did I give {w}?"), "{w} has a {v}.", NAME),
}  # fmt: skip


def _held_out() -> re.Pattern[str]:
    """Whatever words.py says only in validation, anywhere in a text and with any value."""
    sentences = [s for fact in FACTS.values() for s in (*phrasings(fact.told, "validation"), *phrasings(fact.asked, "validation"))]
    patterns = [re.escape(s.rstrip(".?")).replace(r"\{v\}", r"\S+").replace(r"\{w\}", r"\S+") for s in sentences]
    return re.compile(rf"(?<!\w)(?:{'|'.join(patterns)})(?!\w)", re.IGNORECASE)


class Varied:
    """Draws facts, statements and questions. names, words: what a vocabulary offers beside the lists, `Ada` and `lantern` like; what words.py
    holds out is taken out of them."""

    def __init__(self, names: Iterable[str] = (), words: Iterable[str] = ()):
        held = {v.lower() for fact in FACTS.values() if len(fact.values) >= 20 for v in parts(fact.values, "validation")}
        self.held = held | {v + "s" for v in held} | {v.removesuffix("s") for v in held}
        self.names = tuple(n for n in names if n.lower() not in self.held)
        self.words = tuple(w for w in words if w.lower() not in self.held)
        self.held_out = _held_out()
        own = {kind: replace(f, told=(*phrasings(f.told, "train"), *MORE[kind][0]), asked=(*phrasings(f.asked, "train"), *MORE[kind][1]))
               for kind, f in FACTS.items()}  # fmt: skip
        self.kinds = {kind: replace(f, told=(*f.told, *FIRST.get(kind, ()))) for kind, f in (own | NEW).items()}

    def _value(self, rng: random.Random, values: Sequence[str]) -> str:
        if values == NUMBER:
            return str(rng.randint(2, 999))
        if values in (NAME, NAMES, CITY, CITIES):
            known = parts(CITIES if values in (CITY, CITIES) else NAMES, "train")
            return rng.choice(self.names) if self.names and rng.random() < VOCABULARY_SHARE else rng.choice(known)
        if values == WORD:
            return rng.choice(self.words or parts(FOODS, "train"))
        if len(values) >= 20:
            return rng.choice(self.words) if self.words and rng.random() < VOCABULARY_SHARE else rng.choice(parts(tuple(values), "train"))
        if len(values) > 12 and self.words and rng.random() < 0.2:
            return rng.choice(self.words)
        return rng.choice(values)

    def draw(self, rng: random.Random) -> Told:
        """A fact: half of the time of a kind that words.py has."""
        kind = rng.choice(list(FACTS if rng.random() < 0.5 else NEW))
        fact = self.kinds[kind]
        value = self._value(rng, fact.values)
        other = ""
        while fact.others and (not other or other == value or self.held & set(other.lower().split())):
            other = self._value(rng, NAME) if fact.others == NAME else rng.choice(fact.others)
        return Told(kind, fact, value, other)

    def say(self, rng: random.Random, told: Told) -> str:
        """A statement of the fact."""
        while True:
            text = _after(rng.choice(LEADS), rng.choice(told.fact.told), told) + rng.choice(TAILS)
            if not self.held_out.search(text):
                return text

    def ask(self, rng: random.Random, told: Told) -> str:
        """A question for the fact."""
        while True:
            template = rng.choice(told.fact.asked)
            if template[0] == "@":
                text = rng.choice(ASK_THING).format(_filled(template[1:], told))
                text = text[0].upper() + text[1:]
            elif template[0].islower():
                text = rng.choice(ASK_CLAUSE).format(_filled(template, told))
            else:
                text = _after(rng.choice(ASK_LEADS), template, told)
            if not self.held_out.search(text):
                return text


def _filled(template: str, told: Told) -> str:
    return template.format(v=told.value, w=told.other)


def _after(lead: str, template: str, told: Told) -> str:
    text = _filled(template, told)
    if not lead or lead[-2] in "!.":
        return lead + text[0].upper() + text[1:]
    keep = template[0] == "{" or re.match(r"I\b", template) is not None
    return lead + (text if keep else text[0].lower() + text[1:])
