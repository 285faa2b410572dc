"""The page: type and see, on Gradio. The only room that imports Gradio; see docs/page.md.

state      what may be asked for: students, LoRAs, limits, a checked `Order`
worker     one thread that owns the models; latest text wins, clients take turns
paint      an order to a `Picture`: the PNG bytes that `tiue generate` writes, and the time it took
guard      what reaches the server at all: routes, sizes, and who has left
live, inside, lists, compare, api
           one tab each, and the named endpoints
build      the tabs as one page
command    `tiue app`
"""
