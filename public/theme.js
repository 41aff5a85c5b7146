// Puts light or dark on the document before it is painted: what the reader chose, else what the system says.
(() => {
  const system = matchMedia('(prefers-color-scheme: dark)');
  const apply = () => {
    let chosen = null;
    try { chosen = localStorage.getItem('hubless.theme'); } catch { /* storage may be forbidden */ }
    const theme = chosen ?? (system.matches ? 'dark' : 'light');
    document.documentElement.dataset.theme = theme;
    document.querySelector('meta[name=theme-color]').content = theme === 'dark' ? '#17191c' : '#ffffff';
  };
  system.addEventListener('change', apply);
  addEventListener('storage', apply);
  addEventListener('hubless-theme', apply);
  apply();
})();
