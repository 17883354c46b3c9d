import json
import sys

from slime.utils.arguments import parse_args


def train(args):
    print(json.dumps({"name": __name__, "argv": sys.argv, "path": sys.path[0], **vars(args)}))


if __name__ == "__main__":
    train(parse_args())
