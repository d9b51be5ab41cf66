"""The demo's sentences: twelve subjects, five sentences each, from four words to a short paragraph."""

from __future__ import annotations

GROUPS: dict[str, tuple[str, ...]] = {
    "bread": (
        "The dough rises overnight.",
        "Knead the flour and water until the ball of dough feels smooth and springs back.",
        "A sourdough starter is fed with flour every morning so that the wild yeast stays lively.",
        "My loaf came out of the oven with a dark, crackling crust.",
        "Bakers start work long before dawn: the first batch has to be mixed, shaped, proofed and baked while the "
        "town still sleeps, because people expect warm rolls at seven.",
    ),
    "astronomy": (
        "Saturn's rings are mostly ice.",
        "The telescope collects faint light from galaxies billions of years old.",
        "A comet grows its tail when sunlight warms the ice in its nucleus.",
        "On a clear night you can see Jupiter's four large moons through binoculars.",
        "When a massive star runs out of fuel its core collapses within seconds, and the explosion that follows "
        "can outshine every other star of its galaxy for weeks.",
    ),
    "football": (
        "The striker scored twice.",
        "A late penalty decided the match in front of a full stadium.",
        "The goalkeeper dived to the left and pushed the ball over the bar.",
        "Their coach moved an extra defender into midfield after the break.",
        "The supporters had waited twenty years for the trophy, so when the referee blew the final whistle they "
        "climbed over the barriers and danced on the pitch with the players.",
    ),
    "medicine": (
        "The patient has a fever.",
        "Vaccines teach the immune system to recognise a virus before it does harm.",
        "The surgeon closed the wound with seven stitches.",
        "Take one tablet twice a day after meals and drink plenty of water.",
        "The nurse noted that his blood pressure had dropped during the night, called the doctor on duty, and "
        "together they changed the dose of the medication before the morning round.",
    ),
    "weather": (
        "It rained all weekend.",
        "Thick fog closed the harbour until noon.",
        "A cold front brings strong gusts and heavy snow to the mountain passes tonight.",
        "Thunder rolled over the valley as the storm moved east.",
        "After three months without a drop of rain the soil has cracked, the wells are low, and forecasters expect"
        " the drought to last until the end of October.",
    ),
    "programming": (
        "The build is broken again.",
        "A null pointer crashed the server in the middle of the night.",
        "Write a test that fails first, then fix the bug.",
        "The compiler vectorised the inner loop and the program ran four times faster.",
        "She spent the afternoon bisecting commits until she found the change that had swapped two arguments of a "
        "function, a mistake that every reviewer had read past.",
    ),
    "music": (
        "The violin is out of tune.",
        "A jazz trio played softly in the corner of the bar.",
        "The choir rehearses the second movement on Thursdays.",
        "He practises scales on the piano for an hour before breakfast.",
        "The conductor lifted her baton, the audience fell silent, and out of the stillness came a single oboe, "
        "joined one by one by the strings and finally by the whole orchestra.",
    ),
    "gardens": (
        "Tomatoes need full sun.",
        "Prune the roses in early spring, just above a bud that faces outward.",
        "Bees and butterflies visit the lavender beside the gate.",
        "We turned the compost heap and spread it over the vegetable beds.",
        "If slugs eat your lettuce, plant it in raised boxes, water it in the morning rather than in the evening, "
        "and let a hedgehog move in under the hedge.",
    ),
    "trains": (
        "The train leaves at nine.",
        "Passengers for the coast change at the next station.",
        "A signal failure delayed every service into the city by forty minutes.",
        "The night express crosses two borders before breakfast.",
        "Freight used to be shunted here by steam engines; today the yard is empty, the tracks are rusty, and the "
        "old locomotive shed has become a railway museum.",
    ),
    "money": (
        "Interest rates went up.",
        "The bank refused the loan because the company had no collateral.",
        "Share prices fell sharply after the quarterly report.",
        "She puts a tenth of her salary into a savings account.",
        "Inflation eats the value of cash: what a hundred bought ten years ago costs a hundred and thirty now, "
        "which is why pension funds hold shares and bonds.",
    ),
    "dogs": (
        "A puppy chewed my slipper.",
        "The old dog sleeps in front of the fireplace all day.",
        "Shepherds whistle to tell the collie which way to drive the flock.",
        "Our terrier barks at the postman every single morning.",
        "She adopted a nervous greyhound from the shelter, and it took months of patient walks and treats before "
        "the animal wagged its tail at a stranger.",
    ),
    "law": (
        "The court is adjourned.",
        "The jury found the defendant not guilty on all counts.",
        "Her lawyer filed an appeal within fourteen days.",
        "A witness changed his testimony under cross-examination.",
        "The contract says that either party may end the lease with three months' notice, but the judge ruled that"
        " the clause was invalid because it had never been shown to the tenant.",
    ),
}

SENTENCES: tuple[str, ...] = tuple(sentence for group in GROUPS.values() for sentence in group)
