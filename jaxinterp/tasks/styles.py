"""Concepts that are ways to say something: sentiment, formality, tense, language. Written for this project."""

from __future__ import annotations

from jaxinterp.tasks.contrasts import Concept

SENTIMENT = Concept(
    name="sentiment",
    sentences=(
        ("The film was wonderful and I loved it.", "The film was terrible and I hated it."),
        ("The meal was excellent and we left happy.", "The meal was awful and we left angry."),
        ("Her speech was great and everyone cheered.", "Her speech was bad and everyone booed."),
        ("My holiday was amazing from start to finish.", "My holiday was horrible from start to finish."),
        ("The hotel was lovely and very clean.", "The hotel was filthy and very noisy."),
        ("I am so happy with this purchase.", "I am so unhappy with this purchase."),
        ("The service was friendly and helpful.", "The service was hostile and useless."),
        ("What a good day, I feel great.", "What a bad day, I feel sick."),
        ("The concert was superb and we enjoyed it.", "The concert was miserable and we regretted it."),
        ("They praised the fine work of the builders.", "They condemned the poor work of the builders."),
        ("The book is a joy to read.", "The book is a pain to read."),
        ("This phone works well and I recommend it.", "This phone works badly and I returned it."),
    ),
    words=("wonderful", "excellent", "great", "amazing", "lovely", "happy", "superb", "good", "joy"),
    opposites=("terrible", "awful", "bad", "horrible", "miserable", "sad", "hostile", "poor", "pain"),
    pairs=(
        *(("beautiful", "ugly"), ("perfect", "broken"), ("fantastic", "dreadful"), ("pleasant", "nasty")),
        *(("charming", "rude"), ("delightful", "boring"), ("brilliant", "stupid"), ("warm", "cold")),
        *(("cheerful", "gloomy"), ("kind", "cruel"), ("glorious", "tragic"), ("best", "worst")),
    ),
)

FORMALITY = Concept(
    name="formality",
    sentences=(
        ("I am writing to enquire about the vacant position.", "Hey, just wondering about that opening you've got."),
        ("We regret to inform you of a delay.", "Sorry, we're running super late."),
        ("Please accept my sincere apologies for this error.", "My bad, I totally messed that up."),
        ("The committee shall convene at nine o'clock.", "Gonna meet up around nine, okay?"),
        ("I would be most grateful for your assistance.", "It'd be awesome if you could give me a hand."),
        ("Kindly submit the required documents without delay.", "Just send me the stuff real quick."),
        ("We are pleased to confirm your reservation.", "Yep, you're all booked, cool."),
        ("The aforementioned terms remain in effect.", "Yeah, that deal's still on."),
        ("I respectfully disagree with your assessment.", "Nah, I really don't think so."),
        ("It is imperative that all participants attend.", "You've all gotta be there, seriously."),
        ("We would appreciate a response at your convenience.", "Hit me back whenever, no rush."),
        ("The applicant demonstrated considerable expertise.", "She really knew her stuff, wow."),
        ("Permit me to express our profound gratitude.", "Thanks a bunch, you're the best."),
        ("The proposal was subsequently approved by the board.", "So the bosses were like, sure, go for it."),
        ("Guests are requested to refrain from smoking.", "Don't smoke in here, okay?"),
        ("I should be delighted to attend the ceremony.", "Sure, I'd love to come hang out."),
    ),
    words=(
        *("therefore", "regarding", "furthermore", "sincerely", "shall", "hereby", "request", "assistance"),
        *("additional", "consequently", "respectfully", "pursuant", "accordingly"),
    ),
    opposites=(
        *("yeah", "gonna", "wanna", "cool", "stuff", "hey", "lol", "okay", "awesome", "totally", "kinda", "super"),
        *("gotta", "nah"),
    ),
    pairs=(
        *(("individuals", "guys"), ("children", "kids"), ("father", "dad"), ("mother", "mom")),
        *(("gentleman", "guy"), ("residence", "place"), ("vehicle", "ride"), ("physician", "doc")),
        *(("employment", "gig"), ("photograph", "pic"), ("purchase", "buy"), ("infant", "baby")),
    ),
)

TENSE = Concept(
    name="past tense",
    sentences=(
        ("She walked to school every morning.", "She walks to school every morning."),
        ("The dog barked at every car.", "The dog barks at every car."),
        ("He played football with his friends.", "He plays football with his friends."),
        ("They lived in a small house.", "They live in a small house."),
        ("My aunt worked at the hospital.", "My aunt works at the hospital."),
        ("The train left at seven.", "The train leaves at seven."),
        ("We ate breakfast in the garden.", "We eat breakfast in the garden."),
        ("The boys climbed over the wall.", "The boys climb over the wall."),
        ("She found a coin in her pocket.", "She finds a coin in her pocket."),
        ("He asked the waiter for the bill.", "He asks the waiter for the bill."),
        ("The sun rose over the hills.", "The sun rises over the hills."),
        ("I wrote a letter to my cousin.", "I write a letter to my cousin."),
        ("The shop opened early on Mondays.", "The shop opens early on Mondays."),
        ("Our neighbours argued about the fence.", "Our neighbours argue about the fence."),
        ("He drove slowly through the village.", "He drives slowly through the village."),
        ("The river flowed past the mill.", "The river flows past the mill."),
    ),
    words=(
        *("walked", "played", "asked", "told", "found", "gave", "left", "felt", "called", "worked", "lived", "were"),
        *("turned", "ran"),
    ),
    opposites=(
        *("walks", "plays", "asks", "tells", "finds", "gives", "leaves", "feels", "calls", "works", "lives", "are"),
        *("turns", "runs"),
    ),
    pairs=(
        *(("was", "is"), ("had", "has"), ("went", "goes"), ("said", "says"), ("made", "makes"), ("took", "takes")),
        *(("came", "comes"), ("knew", "knows"), ("thought", "thinks"), ("looked", "looks")),
        *(("wanted", "wants"), ("did", "does")),
    ),
    followed_by="action",
)

FRENCH = Concept(
    name="French",
    sentences=(
        ("Elle marche dans la rue avec son ami.", "She walks down the street with her friend."),
        ("Nous avons mangé du pain ce matin.", "We ate some bread this morning."),
        ("Il ne sait pas où est sa voiture.", "He does not know where his car is."),
        ("Le chat dort sur le lit.", "The cat sleeps on the bed."),
        ("Je voudrais une tasse de café.", "I would like a cup of coffee."),
        ("Mon frère travaille dans une banque.", "My brother works in a bank."),
        ("Les oiseaux chantent dans le jardin.", "The birds sing in the garden."),
        ("Elle a lu le livre en deux heures.", "She read the book in two hours."),
        ("Il fait froid en hiver.", "It is cold in winter."),
        ("Nous allons au marché le samedi.", "We go to the market on Saturdays."),
        ("Le train arrive à la gare.", "The train arrives at the station."),
        ("Ma sœur apprend le piano.", "My sister is learning the piano."),
        ("Ils ont acheté des fleurs pour leur tante.", "They bought some flowers for their aunt."),
        ("La porte est fermée à clé.", "The door is locked with a key."),
        ("Tu parles trop vite.", "You talk too fast."),
        ("Le garçon a perdu ses chaussures.", "The boy has lost his shoes."),
    ),
    words=("les", "des", "une", "dans", "pour", "est", "avec", "sur", "elle", "nous", "vous", "qui", "mais", "pas"),
    pairs=(
        *(("jour", "day"), ("pays", "country"), ("mer", "sea"), ("bon", "good"), ("mort", "death"), ("grand", "big")),
        *(("ans", "years"), ("par", "by"), ("que", "that"), ("tout", "all"), ("vers", "toward"), ("mot", "word")),
        *(("nom", "name"), ("vert", "green"), ("avant", "before"), ("ni", "nor")),
    ),
)
