"""Strong scaling: the work of one device as devices are added."""

from matplotlib.figure import Figure
import pandas as pd

from rlhf_jax.figures import drawing, names

PANELS = {
    'tflop': 'TFLOP a device',
    'moved': 'GB to and from\nmain memory',
    'sent': 'GB sent to\nother devices',
    'peak': 'GB of memory',
}


@drawing.styled
def draw(frame: pd.DataFrame, title: str) -> Figure:
  """A figure of PANELS against `devices`, with ideal scaling in grey.

  Args:
    frame: a row for each number of devices, with `devices`, `mesh` and the
      columns of PANELS; the first has the fewest devices.
    title: the name and the size of the program.
  """
  figure = drawing.make_figure(12.0, 3.6, title)
  axes = figure.subplots(1, len(PANELS))
  devices = frame['devices']
  for ax, (name, label) in zip(axes, PANELS.items(), strict=True):
    ax.set_xscale('log', base=2)
    ax.set_yscale('log', base=2)
    ax.plot(devices, frame[name].where(frame[name] > 0), marker='o', ms=4)
    if name != 'sent':  # one device sends nothing: there is no ideal
      ideal = frame[name].iloc[0] * devices.iloc[0] / devices
      ax.plot(devices, ideal, color=names.SOFT, lw=1, ls='--', label='ideal')
      ax.legend(frameon=False)
    ax.set_xticks(devices, [str(n) for n in devices])
    ax.minorticks_off()
    ax.yaxis.set_major_formatter(lambda y, _: f'{y:g}')
    ax.set_xlabel('devices')
    ax.set_title(label, loc='left')
  return figure
