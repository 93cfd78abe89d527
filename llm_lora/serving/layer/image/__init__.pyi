from .asking import PAINT as PAINT
