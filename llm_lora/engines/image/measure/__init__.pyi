from .measuring import judge as judge
