from slime.utils.arguments import parse_args
from train import train

train(parse_args())
