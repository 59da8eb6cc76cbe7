// Begin.

applyTheme();
fillSummary();
fillFindings();
if (connections.length) choose(connections[0].id);
window.addEventListener("resize", redraw);
new ResizeObserver(redraw).observe(plot);
window.addEventListener("beforeprint", () => {
  document.documentElement.dataset.theme = "light";
  redrawNow();
});
window.addEventListener("afterprint", applyTheme);
