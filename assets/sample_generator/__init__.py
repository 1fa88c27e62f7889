"""The small world: a generator of the sample corpus, the project's default data when nothing is downloaded.

One invented river valley (驼铃谷) with its towns, people, crafts and books. `state` fixes the facts,
`grammar` turns facts into sentences, the other modules compose documents, dialogues and summaries,
and `formats` writes each of them in the native format of one of the project's data sources.
Everything is a pure function of the package's own files.
"""
