"""The conversation that backends are compared on: questions and answers written for this purpose. Knows text only."""

TALK: tuple[tuple[str, str], ...] = (
    (
        "Why does bread rise?",
        "Yeast eats the sugar in the dough and gives off carbon dioxide. The gas is caught in small pockets, because kneading has turned "
        "the flour's proteins into gluten, a stretchy net. In the oven the gas expands, the water turns to steam, and after a few minutes "
        "the crust sets and holds the loaf in shape.",
    ),
    (
        "My sister Lena moved to Porto in March. What should I bring when I visit her?",
        "Bring shoes you can walk uphill in, since the old town is steep, and a light raincoat, because the ocean sends showers even in "
        "spring. A small present from home will please her more than anything bought there. If you plan to swim, take a warm towel: the "
        "Atlantic is cold all year.",
    ),
    (
        "Write a Python function that says whether a number is even.",
        "def is_even(n):\n    return n % 2 == 0\n\nThe percent sign gives the remainder of a division. An even number leaves 0 when it is "
        "divided by 2, so the comparison is True for 4 and -10 and False for 7.",
    ),
    (
        "How far away is the Moon?",
        "About 384,000 kilometres on average. Its path is not a perfect circle, so the distance changes between roughly 357,000 and 406,000 "
        "kilometres within a month. Light needs 1.3 seconds for the way, and a car at 100 km/h would need more than five months.",
    ),
    (
        "Tell me a short story about a lighthouse.",
        "Old Marit kept the light on Gull Rock for thirty winters. When the company sent a machine to replace her, she showed it every "
        "switch and then stayed one more night. The machine failed at two in the morning. Marit lit the lamp by hand, and in the village "
        "nobody ever knew that the new light had been late by four minutes.",
    ),
    (
        "What is the difference between weather and climate?",
        "Weather is what happens outside on one day: it rains in the morning, and the wind turns north by noon. Climate is what you may "
        "expect in a place over many years. One cold week says little about the climate, in the same way that one throw says little about "
        "a die.",
    ),
    (
        "I have 48 apples and want to fill bags of 5. How many bags do I need?",
        "You can fill 9 whole bags, because 9 times 5 is 45. Three apples are left over. If every apple must be in a bag, you need 10 bags, "
        "and the last one holds only 3.",
    ),
    (
        "How do I keep basil alive in the kitchen?",
        "Give it a bright window but no burning sun at noon. Water the soil, not the leaves, and let the top dry a little before the next "
        "drink. Cut whole stems just above a pair of leaves instead of picking single leaves; two new stems will grow from that place. Most "
        "plants from a shop are crowded, so divide them into three pots.",
    ),
    (
        "Who painted the ceiling of the Sistine Chapel?",
        "Michelangelo did, between 1508 and 1512, for Pope Julius II. He thought of himself as a sculptor and did not want the work at "
        "first. He painted standing on a scaffold with his head bent back, and complained about it in a poem.",
    ),
    (
        "Explain compound interest as if I were ten.",
        "Suppose you lend a friend 100 coins, and each year the friend adds one coin for every ten. After one year you have 110. In the "
        "second year the friend adds a coin for every ten of those 110, which makes 11, not 10. The pile grows a little faster each year "
        "because the coins you were given earn coins too.",
    ),
    (
        "What should I check before I buy a used bicycle?",
        "Lift each wheel and spin it: it should run straight and not touch the brakes. Pull the brakes hard and push the bicycle; nothing "
        "may slip. Look along the frame for dents or cracked paint near the welds. Turn the pedals backwards and listen. A worn chain is "
        "cheap, a bent frame is not, and a number filed off the frame means that you should walk away.",
    ),
    (
        "Why is the sea salty?",
        "Rain dissolves a little of the rock it runs over, and rivers carry what was dissolved to the sea. Water leaves the sea again as "
        "vapour, but the salt stays behind. This has gone on for hundreds of millions of years. Hot springs on the sea floor add their "
        "share, and some of the salt settles into the mud, so that by now it hardly becomes saltier.",
    ),
    (
        "Remember this for later: the blue key opens the shed, the red one the gate.",
        "I will remember it. The blue key is for the shed and the red key is for the gate. Tell me if you change the locks.",
    ),
    (
        "Can you give me three tips for a job interview?",
        "First, read what the company makes and use it once yourself. Second, prepare two stories about something that went wrong and what "
        "you did about it; almost everybody asks. Third, bring a question you really want to have answered, such as how the team decides "
        "what to do next.",
    ),
    (
        "Which key opens the shed?",
        "The blue one. The red key is for the gate.",
    ),
    (
        "How do vaccines work?",
        "A vaccine shows the immune system a harmless piece of a germ. Cells that recognise the piece multiply, make antibodies, and some "
        "of them stay for years. If the real germ arrives later, the answer comes within hours instead of weeks, often before you notice "
        "that you are ill.",
    ),
)

QUESTIONS: tuple[str, ...] = (
    "What did we talk about just now?",
    "Which of these subjects is the most useful for a child to know, and why?",
    "Write a letter to a friend about a walk by the sea.",
    "Explain how a bicycle stays upright.",
    "Give me a recipe for a simple soup.",
    "What is the largest planet, and how do we know its size?",
    "Tell me a story about a fox that learns to count.",
    "How would you describe the colour green to somebody who cannot see?",
)
