"""The page, as a Space starts it: `python app.py`. `tiue app` has options."""

from tiue_core.app.build import build, launch
from tiue_core.app.state import ServerConfig, offered

page, broker = build(ServerConfig.of(offered([])))

if __name__ == "__main__":
    launch(page, broker)
