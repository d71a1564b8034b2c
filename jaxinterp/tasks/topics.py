"""Concepts that are topics: weddings, the ocean, music. The sentences were written for this project."""

from __future__ import annotations

from jaxinterp.tasks.contrasts import Concept

WEDDING = Concept(
    name="wedding",
    sentences=(
        ("They spent the whole spring planning the wedding.", "They spent the whole spring planning the garden."),
        ("The bride walked slowly down the aisle.", "The clerk walked slowly down the hall."),
        ("The groom waited nervously at the altar.", "The driver waited nervously at the light."),
        ("Everyone cried when they exchanged their vows.", "Everyone laughed when they exchanged their notes."),
        ("The marriage ceremony began at noon.", "The weekly lecture began at noon."),
        ("We danced all night at the wedding reception.", "We worked all night at the packing plant."),
        ("She threw her bouquet to the bridesmaids.", "She threw her jacket to the children."),
        ("The newlyweds left for their honeymoon.", "The two brothers left for their shift."),
        ("He asked her to marry him last night.", "He asked her to call him last night."),
        ("My sister is getting married in June.", "My sister is getting promoted in June."),
        ("The priest pronounced them married.", "The judge pronounced them guilty."),
        ("Her white bridal gown was very long.", "Her white winter coat was very long."),
    ),
    words=(
        *("wedding", "weddings", "bride", "groom", "marriage", "marriages", "married", "marry", "marital"),
        *("ceremony", "vows", "altar", "reception", "spouse"),
    ),
    pairs=(
        *(("husband", "doctor"), ("wife", "nurse"), ("couple", "team"), ("guests", "students"), ("church", "office")),
        *(("chapel", "library"), ("veil", "lamp"), ("ring", "map"), ("anniversary", "meeting")),
        *(("engagement", "contract"), ("dress", "phone"), ("flowers", "machine")),
    ),
)

OCEAN = Concept(
    name="ocean",
    sentences=(
        ("The tide rolled in over the beach.", "The fog rolled in over the fields."),
        ("We swam in the sea until sunset.", "We sat in the park until sunset."),
        ("Deep under the ocean the water is dark.", "Deep under the castle the cellar is dark."),
        ("The salty sea breeze blew along the coast.", "The dry evening breeze blew along the avenue."),
        ("She loves diving in the Pacific Ocean.", "She loves reading in the public archive."),
        ("Marine biologists study life in the deep sea.", "Social historians study life in the old town."),
        ("They sailed across the Atlantic in a storm.", "They drove across the county in a hurry."),
        ("The ocean stretched out to the horizon.", "The fields stretched out to the horizon."),
        ("Children built castles at the seashore.", "Children built towers at the playground."),
        ("High tide covered the rocks along the shore.", "Dead leaves covered the bench along the path."),
        ("The submarine sank to the bottom of the ocean.", "The pebble sank to the bottom of the bucket."),
        ("He could smell the sea from the coastal path.", "He could smell the bread from the narrow path."),
    ),
    words=(
        *("ocean", "oceans", "sea", "seas", "marine", "coast", "coastal", "beach", "beaches", "tide", "tides"),
        *("shore", "shores", "Pacific", "Atlantic"),
    ),
    pairs=(
        *(("waves", "lights"), ("fish", "dogs"), ("boat", "bus"), ("ship", "truck"), ("whale", "horse")),
        *(("sand", "carpet"), ("island", "building"), ("reef", "bridge"), ("harbor", "station")),
        *(("sailors", "soldiers"), ("shark", "tiger"), ("lighthouse", "museum")),
    ),
)

MUSIC = Concept(
    name="music",
    sentences=(
        ("The band played their new song on stage.", "The team showed their new plan at work."),
        ("He practised the guitar every evening.", "He practised the backhand every evening."),
        ("The orchestra tuned up before the concert.", "The kitchen warmed up before the dinner."),
        ("She learned to play the piano as a child.", "She learned to speak the language as a child."),
        ("They sang an old melody around the fire.", "They told an old riddle around the fire."),
        ("The singer had a clear and gentle voice.", "The teacher had a clear and gentle style."),
        ("My uncle plays the violin in a quartet.", "My uncle keeps the accounts in a bakery."),
        ("We listened to jazz on the radio all night.", "We listened to news on the radio all night."),
        ("The piano teacher taught her some chords.", "The maths teacher taught her some proofs."),
        ("He hummed the song while he was cooking.", "He read the paper while he was cooking."),
        ("Their guitarist broke a string during the solo.", "Their goalkeeper broke a finger during the match."),
        ("The concert hall was full of people.", "The sports hall was full of people."),
        ("She wrote the music for three films.", "She wrote the scripts for three films."),
        ("The violins came in after the cellos.", "The lorries came in after the vans."),
        ("His playlist is full of pop songs.", "His notebook is full of rude jokes."),
        ("The conductor raised his baton and they played.", "The chairman raised his hand and they voted."),
    ),
    words=(
        *("music", "musical", "song", "songs", "guitar", "piano", "violin", "concert", "orchestra", "band"),
        *("jazz", "melody", "singer", "singing", "sang"),
    ),
    pairs=(
        *(("drums", "chairs"), ("album", "report"), ("lyrics", "rules"), ("musicians", "farmers")),
        *(("symphony", "committee"), ("choir", "crew"), ("tune", "tool"), ("rhythm", "weight")),
        *(("opera", "market"), ("composer", "engineer"), ("trumpet", "hammer"), ("chorus", "border")),
    ),
)
