"""Generate the sample corpus, the default data when nothing is downloaded.

It describes an invented river valley (驼铃谷) with its towns, people, crafts and books. `state`
draws the people and their relations, `grammar` expands phrasings into sentences, the other modules
compose documents, dialogues and summaries, and `formats` writes them in the native formats of the
project's data sources. The output is a function of this package's own files alone.
"""
