// Filters of the answers. Without this script every answer is shown and the filter bar is not.
(() => {
  const bar = document.querySelector(".filters");
  if (!bar) return;
  const buttons = [...bar.querySelectorAll("button")];
  const search = bar.querySelector("input");
  const groups = [...document.querySelectorAll(".group")];
  const count = document.querySelector("[data-count]");
  let kind = "all";
  const apply = () => {
    const wanted = search.value.trim().toLowerCase();
    let shown = 0;
    for (const group of groups) {
      let any = false;
      for (const sample of group.querySelectorAll(".sample")) {
        const fits = (kind === "all" || sample.dataset.kind.split(" ").includes(kind))
          && sample.textContent.toLowerCase().includes(wanted);
        sample.hidden = !fits;
        any ||= fits;
        shown += fits ? 1 : 0;
      }
      group.hidden = !any;
    }
    count.textContent = shown;
  };
  for (const button of buttons) {
    button.addEventListener("click", () => {
      kind = button.dataset.show;
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
      apply();
    });
  }
  search.addEventListener("input", apply);
  bar.hidden = false;
})();
